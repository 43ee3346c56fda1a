use super::*;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn passed(name: &str) -> (String, Verdict) {
    (name.to_owned(), Verdict::Passed)
}

fn failed(name: &str, fault: Option<Fault>) -> (String, Verdict) {
    (name.to_owned(), Verdict::Failed { why: "why".into(), fault })
}

/// Boots that are told beforehand; what each was asked for.
fn run(wanted: &[&str], boots: Vec<Boot>) -> (Account, Vec<Vec<String>>) {
    let (mut account, mut asked, mut boots) = (Account::default(), Vec::new(), boots.into_iter());
    let mut boot = |names: &[String]| {
        asked.push(names.to_vec());
        boots.next().ok_or_else(|| Error::new("one boot too many"))
    };
    account.run(&names(wanted), &mut boot).expect("boots enough");
    assert_eq!(boots.next(), None, "one boot too few");
    (account, asked)
}

#[test]
fn a_failure_of_ours_is_never_run_again() {
    let verdicts = vec![passed("a"), failed("b", None), passed("c")];
    let (account, asked) = run(&["a", "b", "c"], vec![Boot { verdicts, end: End::Done }]);
    assert_eq!((account.passed, account.failed.len(), asked.len()), (2, 1, 1));
    let crash = Boot { verdicts: vec![passed("a")], end: End::Ours("a crash".into()) };
    let rest = Boot { verdicts: vec![passed("c")], end: End::Done };
    let (account, asked) = run(&["a", "b", "c"], vec![crash, rest]);
    assert_eq!(account.failed, [("b".to_owned(), "a crash".to_owned())]);
    assert_eq!(asked, [names(&["a", "b", "c"]), names(&["c"])], "what had not begun is run");
    assert!(account.spoiled.is_empty());
}

#[test]
fn what_the_emulator_spoiled_is_run_again_and_counted() {
    let first =
        Boot { verdicts: vec![failed("a", Some(Fault::LabRegisters))], end: End::Faulty(Fault::Silent) };
    let second = Boot { verdicts: vec![passed("c"), passed("a"), passed("b")], end: End::Done };
    let (account, asked) = run(&["a", "b", "c"], vec![first, second]);
    assert_eq!(asked[1], names(&["c", "a", "b"]));
    assert_eq!((account.passed, account.failed.len()), (3, 0));
    let counts = account.by_fault();
    assert_eq!(counts, BTreeMap::from([(Fault::LabRegisters, vec!["a"]), (Fault::Silent, vec!["b"])]));
}

#[test]
fn what_is_spoiled_each_time_has_failed() {
    let spoiled = || Boot { verdicts: Vec::new(), end: End::Faulty(Fault::Still) };
    let (account, asked) = run(&["a"], (0..=SPOILED).map(|_| spoiled()).collect());
    assert_eq!((asked.len(), account.failed.len(), account.passed), (SPOILED + 1, 1, 0));
}

#[test]
fn a_crash_behind_the_last_scenario_counts() {
    let boot = |end| vec![Boot { verdicts: vec![passed("a")], end }];
    let (account, _) = run(&["a"], boot(End::Ours("a crash".into())));
    assert_eq!(account.failed, [(AFTER.to_owned(), "a crash".to_owned())]);
    let (account, _) = run(&["a"], boot(End::Faulty(Fault::Silent)));
    assert_eq!((account.passed, account.failed.len(), account.spoiled.len()), (1, 0, 1));
}

#[test]
fn a_machine_that_ends_early_has_not_run_the_rest() {
    let early = Boot { verdicts: vec![passed("a")], end: End::Done };
    let rest = Boot { verdicts: vec![passed("c")], end: End::Done };
    let (account, _) = run(&["a", "b", "c"], vec![early, rest]);
    assert_eq!(account.failed, [("b".to_owned(), "the lab ended before it".to_owned())]);
}
