//! Files: refused before the run where they can be, written whatever became of it.

use crate::support::{adds_up, alone, command, document, output, paths, results, skipped};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SHORT: [&str; 9] = ["latency", "--path", "irqfd", "-D", "100ms", "--warm-up", "0", "--vectors", "4"];

#[test]
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
        let output = output(&[&["latency", "--path", "irqfd", "-D", "1h"], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {said}");
        assert!(said.contains("none/x") && said.contains("ENOENT"), "{flags:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_file_that_fails_at_the_end_takes_no_other_along() {
    let _alone = alone();
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log").display().to_string();
    let full = output(&[&SHORT[..], &["--json", "--html", "/dev/full", "--hlog", &log]].concat());
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(full.status.code() == Some(1) && said.contains("/dev/full") && said.contains("ENOSPC"), "{said}");
    adds_up(&paths(&document(&full))[0]);
    assert!(std::fs::read_to_string(&log).expect("a log").contains("Tag=irqfd-4"));
    // stdout is a file like others.
    std::fs::remove_file(&log).expect("it was there");
    let stdout = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let status =
        command(&[&SHORT[..], &["--hlog", &log]].concat()).stdout(stdout).status().expect("it starts");
    assert_eq!(status.code(), Some(1));
    assert!(std::fs::read_to_string(&log).expect("a log").contains("Tag=irqfd-4"));
}

fn wait_for(file: &Path) {
    let began = Instant::now();
    while !file.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "no {}", file.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_run_that_is_ended_writes_what_there_is() {
    let _alone = alone();
    if skipped() {
        return;
    }
    for signal in ["-INT", "-TERM"] {
        let folder = tempfile::tempdir().expect("a folder");
        let place = |name: &str| folder.path().join(name);
        let (html, log, hgrm) = (place("html"), place("log"), place("hgrm"));
        let files = [("--html", &html), ("--hlog", &log), ("--hgrm", &hgrm)];
        let mut run =
            command(&["latency", "--path", "irqfd,polled_eventfd", "-D", "600s", "--warm-up", "0", "--json"]);
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
        assert!(std::fs::read_to_string(&log).expect("a log").contains("Tag=irqfd-64"));
        assert!(std::fs::read_dir(&hgrm).expect("a folder").count() > 0);
    }
}

#[test]
fn an_earlier_run_is_compared_with_on_the_same_machine_only() {
    let _alone = alone();
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("then.json").display().to_string();
    let mut then = results(&[&SHORT[..], &["--json"]].concat());
    let write = |then: &Value| std::fs::write(&file, then.to_string()).expect("a file");
    write(&then);
    let compare = |more: &[&str]| output(&[&SHORT[..], &["--baseline", &file], more].concat());
    let same = compare(&[]);
    // 1 where it got worse meanwhile, which a shared machine may.
    assert!(matches!(same.status.code(), Some(0 | 1)));
    assert!(String::from_utf8_lossy(&same.stdout).contains("then.json"));
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
