//! Files: refused before the run where they can be, written whatever became of it.

use super::support::{accepted, adds_up, by_producer, command, document, output, paths, results, said_to};
use crate::harness::tests;
use crate::need::Need;
use base64::prelude::{BASE64_STANDARD, Engine};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use pollvisor_tests::rig::Accel;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

tests! {
    shared [] => what_cannot_be_written_is_refused_before_anything_is_measured;
    each [Need::Cpus(2)] => a_file_that_fails_at_the_end_takes_no_other_along, a_run_that_is_ended_writes_what_there_is,
        an_earlier_run_is_compared_with_on_the_same_machine_only;
}

fn short(accel: Accel) -> [&'static str; 9] {
    ["latency", "--path", by_producer(accel), "-D", "100ms", "--warm-up", "0", "--vectors", "4"]
}

/// The first part of a tag in a log.
fn tag(accel: Accel, vectors: u32) -> String {
    format!("Tag={}-{vectors}", accel_name(accel, by_producer(accel)))
}

/// A path's name in results.
fn accel_name(accel: Accel, path: &str) -> String {
    match accel {
        Accel::Kvm => path.into(),
        Accel::Software => format!("software_{path}"),
    }
}

fn what_cannot_be_written_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().join("none").join("x");
    let nowhere = nowhere.display().to_string();
    let trace = format!("trace,file={nowhere}");
    for flags in [
        &["--html", &nowhere][..],
        &["--hlog", &nowhere],
        &["--baseline", &nowhere],
        &["--threshold", "1", "--on-threshold", &trace],
    ] {
        // An hour would be noticed.
        let output = said_to(&[&["latency", "--path", "irqfd", "-D", "1h"], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {said}");
        assert!(said.contains("none/x") && said.contains("ENOENT"), "{flags:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

fn a_file_that_fails_at_the_end_takes_no_other_along(accel: Accel) {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log").display().to_string();
    let full =
        output(accel, &[&short(accel)[..], &["--json", "--html", "/dev/full", "--hlog", &log]].concat());
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(full.status.code() == Some(1) && said.contains("/dev/full") && said.contains("ENOSPC"), "{said}");
    adds_up(&paths(&document(&full))[0]);
    assert!(std::fs::read_to_string(&log).expect("a log").contains(&tag(accel, 4)));
    // stdout is a file like others.
    std::fs::remove_file(&log).expect("it was there");
    let stdout = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let status = command(accel, &[&short(accel)[..], &["--hlog", &log]].concat())
        .stdout(stdout)
        .status()
        .expect("it starts");
    assert_eq!(status.code(), Some(1));
    assert!(std::fs::read_to_string(&log).expect("a log").contains(&tag(accel, 4)));
}

fn wait_for(file: &Path) {
    let began = Instant::now();
    while !file.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "no {}", file.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn a_run_that_is_ended_writes_what_there_is(accel: Accel) {
    for signal in ["-INT", "-TERM"] {
        let folder = tempfile::tempdir().expect("a folder");
        let place = |name: &str| folder.path().join(name);
        let (html, log, hgrm) = (place("html"), place("log"), place("hgrm"));
        let files = [("--html", &html), ("--hlog", &log), ("--hgrm", &hgrm)];
        let mut run = command(
            accel,
            &[
                "latency",
                "--path",
                &format!("{},polled_eventfd", by_producer(accel)),
                "-D",
                "600s",
                "--warm-up",
                "0",
                "--json",
            ],
        );
        for (flag, file) in files {
            run.arg(flag).arg(file);
        }
        let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        // The files are made after it began to listen for signals.
        wait_for(&hgrm);
        std::thread::sleep(Duration::from_millis(700));
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
        assert!(killed.success());
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{signal}: {}", String::from_utf8_lossy(&output.stderr));
        let results = document(&output);
        assert_eq!(results["interrupted"], true);
        assert_eq!(paths(&results).len(), 1, "the one that was on");
        adds_up(&paths(&results)[0]);
        assert!(std::fs::read_to_string(&html).expect("a page").contains("ended early"));
        assert!(std::fs::read_to_string(&log).expect("a log").contains(&tag(accel, 64)));
        assert!(std::fs::read_dir(&hgrm).expect("a folder").count() > 0);
    }
}

/// A run as it would have been if everything in it had taken so much longer.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "nanoseconds, at most ten thousand seconds"
)]
fn longer(accel: Accel, then: &Value, factor: f64) -> Value {
    let mut then = then.clone();
    for path in then["paths"].as_array_mut().expect("paths") {
        // So seldom that none of its samples waited behind another.
        path["per_second"] = 0.001.into();
        let stage = &mut path["stages"][accepted(accel)]["histogram"];
        let bytes = BASE64_STANDARD.decode(stage.as_str().expect("a histogram")).expect("base64");
        let was: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).expect("a histogram");
        let mut is = Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds");
        for value in was.iter_recorded() {
            let scaled = (value.value_iterated_to() as f64 * factor).max(1.0) as u64;
            is.saturating_record_n(scaled, value.count_at_value());
        }
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(&is, &mut bytes).expect("memory");
        *stage = BASE64_STANDARD.encode(&bytes).into();
    }
    then
}

fn an_earlier_run_is_compared_with_on_the_same_machine_only(accel: Accel) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("then.json").display().to_string();
    // In a closed loop no sample waits behind another, on a busy machine neither.
    let calm = [
        "latency",
        "--path",
        by_producer(accel),
        "-D",
        "500ms",
        "--rate",
        "2000",
        "--closed",
        "--vectors",
        "4",
    ];
    let mut then = results(accel, &[&calm[..], &["--json"]].concat());
    let write = |then: &Value| std::fs::write(&file, then.to_string()).expect("a file");
    write(&then);
    let compare = |more: &[&str]| output(accel, &[&calm[..], &["--baseline", &file], more].concat());
    // What the command says of an earlier run that took so much longer than now, and its exit code.
    let earlier = |factor: f64| {
        write(&longer(accel, &then, factor));
        let now = compare(&[]);
        let said = String::from_utf8_lossy(&now.stdout).into_owned();
        assert!(said.contains("then.json"), "{said}");
        let row = said.lines().find(|line| {
            line.contains(accepted(accel).trim_start_matches("signal_to_")) && line.contains("p50")
        });
        (now.status.code(), row.unwrap_or_else(|| panic!("no p50 in {said}")).to_string())
    };
    // Not a thousand times: a machine where an interrupt takes microseconds has too few samples apart from each other then.
    let (code, row) = earlier(100.0);
    assert!(code == Some(0) && row.contains("better"), "{code:?}: {row}");
    let (code, row) = earlier(0.01);
    assert!(code == Some(1) && row.contains("worse"), "{code:?}: {row}");
    // Of the other accelerator: refused in a sentence, forced or not.
    let other = if accel == Accel::Kvm { Accel::Software } else { Accel::Kvm };
    then["machine"]["accelerator"] = other.name().into();
    write(&then);
    for more in [&[][..], &["--force"]] {
        let refused = compare(more);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains("of the other accelerator"), "{said}");
        assert!(refused.stdout.is_empty(), "nothing is measured");
    }
    then["machine"]["accelerator"] = accel.name().into();
    then["machine"]["kernel"] = "5.4".into();
    write(&then);
    let refused = compare(&[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("another machine: kernel: 5.4 there"),
        "{said}"
    );
    assert!(said.contains("--force") && refused.stdout.is_empty(), "nothing is measured: {said}");
    let forced = compare(&["--force"]);
    assert!(String::from_utf8_lossy(&forced.stdout).contains("another machine: kernel"));
    std::fs::write(&file, "{}").expect("a file");
    let broken = compare(&[]);
    assert!(broken.status.code() == Some(1) && broken.stdout.is_empty());
}
