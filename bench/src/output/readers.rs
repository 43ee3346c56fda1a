//! The outputs as others read them: HdrHistogram's own log processor and its Python package, PyPI's jsonschema, Chromium.
//!
//! `bench/tests/readers.sh` sets those up, and says where by the environment: `READERS_JAR`, `READERS_PYTHON`,
//! `READERS_CHROMIUM`.
//! `READERS_KEEP` names a folder to leave the page and the log in, for looking at.

use super::{Extra, FileArgs, Outputs, hgrm, hlog, html, json, keys, sample};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// The program that the environment names.
fn program(variable: &str) -> String {
    let named = std::env::var(variable).ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| panic!("{variable} is not set; bench/tests/readers.sh sets it"))
}

fn run(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    (out, err)
}

#[test]
#[ignore = "bench/tests/readers.sh sets up what it needs, and runs it"]
fn python_reads_the_log_the_distributions_and_the_json() {
    let python = program("READERS_PYTHON");
    let folder = tempfile::tempdir().unwrap();
    let results = sample::results();
    let args = FileArgs {
        html: Some(folder.path().join("out.html")),
        hlog: Some(folder.path().join("out.hlog")),
        hgrm: Some(folder.path().join("hgrm")),
        ..FileArgs::default()
    };
    assert!(!Outputs::open(&args).unwrap().finish_to(&results, &sample::extra(), &mut Vec::new()).unwrap());
    std::fs::write(folder.path().join("out.json"), json::json(&results, &sample::extra()).unwrap()).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (out, _) = run(Command::new(python)
        .arg(here.join("tests/readers.py"))
        .arg(here.join("schema.json"))
        .arg(folder.path()));
    if let Some(keep) = std::env::var_os("READERS_KEEP") {
        for name in ["out.html", "out.hlog"] {
            std::fs::copy(folder.path().join(name), Path::new(&keep).join(name)).unwrap();
        }
    }
    let expected: usize = results.paths.iter().map(|path| path.distributions().len()).sum();
    assert!(out.contains(&format!("{expected} histograms agree")), "{out}");
    eprint!("{out}");
}

/// A document of nothing is as the schema says, too; and a schema that takes everything would show nothing.
#[test]
#[ignore = "bench/tests/readers.sh sets up what it needs, and runs it"]
fn the_schema_takes_what_is_right_and_refuses_what_is_wrong() {
    let (python, folder) = (program("READERS_PYTHON"), tempfile::tempdir().unwrap());
    let schema = |document: &Value| {
        let file = folder.path().join("document.json");
        std::fs::write(&file, document.to_string()).unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(&python);
        let output =
            command.arg(here.join("tests/schema.py")).arg(here.join("schema.json")).arg(file).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(0) => None,
            Some(1) if said.contains("document.json: ") => Some(said),
            _ => panic!("{output:?}"),
        }
    };
    let document =
        || serde_json::from_str::<Value>(&json::json(&sample::results(), &sample::extra()).unwrap()).unwrap();
    assert_eq!(schema(&document()), None);
    let mut nothing = sample::results();
    nothing.paths.clear();
    (nothing.interrupted, nothing.errors) = (true, vec!["nothing was measured".into()]);
    let nothing = json::json(&nothing, &Extra::default()).unwrap();
    assert_eq!(schema(&serde_json::from_str(&nothing).unwrap()), None);
    let wrong: [fn(&mut Value); 11] = [
        |d| d["speed"] = 9.into(),
        |d| d["goals"][0]["met"] = Value::Null,
        |d| d["format"] = 2.into(),
        |d| d["began"] = "yesterday".into(),
        |d| drop(d["machine"].as_object_mut().unwrap().remove("tsc_khz")),
        |d| d["paths"][0]["p50_ns"] = Value::Null,
        |d| d["paths"][0]["ratio_ci95"] = serde_json::json!([1.0]),
        |d| d["paths"][0]["load"]["kind"] = "ajar".into(),
        |d| d["paths"][0]["ledger"]["sent"] = (-1).into(),
        |d| d["paths"][0]["stages"]["signal_to_moon"] = d["paths"][0]["stages"]["signal_to_accepted"].clone(),
        |d| d["paths"][0]["stages"]["signal_to_accepted"]["histogram"] = "not base64!".into(),
    ];
    for (at, edit) in wrong.into_iter().enumerate() {
        let mut document = document();
        edit(&mut document);
        assert!(schema(&document).is_some(), "the edit {at} is taken");
    }
}

#[test]
#[ignore = "bench/tests/readers.sh sets up what it needs, and runs it"]
fn hdrhistograms_own_processor_reads_the_log_as_the_distributions_have_it() {
    let jar = program("READERS_JAR");
    let folder = tempfile::tempdir().unwrap();
    let results = sample::results();
    let log = folder.path().join("out.hlog");
    std::fs::write(&log, hlog::hlog(&results).unwrap()).unwrap();
    let process = |args: &[&str]| {
        let java = ["-cp", &jar, "org.HdrHistogram.HistogramLogProcessor", "-i"];
        run(Command::new("java").args(java).arg(&log).args(args)).0
    };
    let tags = process(&["-listtags"]);
    let expected: usize = results.paths.iter().map(|path| path.distributions().len()).sum();
    assert_eq!(
        tags.lines().filter(|line| line.contains(':') && !line.contains(' ')).count(),
        expected,
        "{tags}"
    );
    for (path, key) in results.paths.iter().zip(keys(&results)).take(2) {
        for (stage, figures) in path.distributions() {
            let theirs = process(&["-tag", &format!("{key}:{stage}"), "-outputValueUnitRatio", "1000"]);
            let theirs: Vec<_> = theirs.lines().filter(|line| !line.starts_with("#[StartTime")).collect();
            let ours = hgrm::text(&figures.decode().unwrap());
            let ours: Vec<_> = ours.lines().collect();
            assert_eq!(theirs.len(), ours.len(), "{key}:{stage}");
            // Where a percentile falls on a sample exactly, rounding may take the next one.
            let differ: Vec<_> = theirs.iter().zip(&ours).filter(|(theirs, ours)| theirs != ours).collect();
            assert!(differ.len() <= 2, "{key}:{stage}: {differ:#?}");
        }
    }
}

/// What the browser is asked: appended to the page, for the page itself has no script.
const PROBE: &str = "<script>
document.querySelectorAll('details').forEach(folded => folded.open = true);
const boxes = [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect());
const ink = getComputedStyle(document.body);
const line = document.querySelector('path.line');
document.body.setAttribute('data-probe', JSON.stringify({
  svgs: boxes.length, sized: boxes.filter(b => b.width > 100 && b.height > 10).length,
  dark: matchMedia('(prefers-color-scheme: dark)').matches, background: ink.backgroundColor, ink: ink.color,
  line: getComputedStyle(line).stroke, wide: document.documentElement.scrollWidth <= innerWidth,
  cut: [...document.querySelectorAll('svg text')].filter(t => { const b = t.getBBox(), v = t.ownerSVGElement.viewBox.baseVal;
    return b.x < 0 || b.y < 0 || b.x + b.width > v.width || b.y + b.height > v.height; }).length,
  fetched: performance.getEntriesByType('resource').length}).replaceAll('\"', \"'\"));
</script>";

#[test]
#[ignore = "bench/tests/readers.sh sets up what it needs, and runs it"]
fn chromium_draws_the_page_in_both_colour_schemes() {
    let chromium = program("READERS_CHROMIUM");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    let page = html::html(&sample::results(), &sample::extra());
    std::fs::write(&file, page.replace("</body>", &format!("{PROBE}</body>"))).unwrap();
    let mut seen = Vec::new();
    // Blink's numbers: 0 is dark, 1 is light.
    for (scheme, dark) in [(1, false), (0, true)] {
        let (dom, log) = run(Command::new(&chromium)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                "--window-size=1200,900",
            ])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
            .arg("--dump-dom")
            .arg(format!("file://{}", file.display())));
        let console: Vec<_> = log.lines().filter(|line| line.contains(":CONSOLE")).collect();
        assert!(console.is_empty(), "{console:?}");
        let probe = dom.split_once("data-probe=\"").expect("the probe ran").1.split_once('"').unwrap().0;
        let probe: Value = serde_json::from_str(&probe.replace('\'', "\"")).unwrap();
        assert_eq!(probe["dark"], dark, "{probe}");
        let drawn = page.matches("<svg").count();
        assert_eq!(probe["svgs"], drawn, "{probe}");
        assert_eq!(probe["sized"], drawn, "{probe}");
        // Nothing wider than the window, no text cut off at a drawing's edge, nothing loaded.
        assert!(probe["wide"] == true && probe["cut"] == 0 && probe["fetched"] == 0, "{probe}");
        seen.push((probe["background"].to_string(), probe["ink"].to_string(), probe["line"].to_string()));
    }
    let [light, dark] = &seen[..] else { unreachable!("two schemes") };
    assert!(light.0 != dark.0 && light.1 != dark.1 && light.2 != dark.2, "{seen:?}");
    eprintln!("light and dark: {seen:?}");
}
