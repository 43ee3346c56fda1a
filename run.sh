cd /tmp/wt-loom
export CARGO_TARGET_DIR=/tmp/wt-loom/target/loom
export RUST_BACKTRACE=0 RUSTC_BOOTSTRAP=1; RUSTFLAGS="--cfg loom" timeout ${T:-300} nice -n 19 cargo test -p pollvisor-tests --release --test loom_path -j1 -- --test-threads=1 --nocapture -Zunstable-options --report-time "$@" 2>&1 | grep -v '^\s*Compiling' 
