#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pollvisor_tests::fuzz::config(data));
