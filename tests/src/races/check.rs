//! Whether the table and the source agree: everything by text, so that it is the source which is asked.

use super::{COUNT, Cover, Race, catalogue};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Functions of the models' files that run a scenario and are none.
const RUNNERS: [&str; 6] = ["check", "check_broken", "model", "bounded", "spawn", "drop"];

/// The sources, read once.
struct Sources<'a> {
    root: &'a Path,
    read: HashMap<&'static str, Option<String>>,
}

impl Sources<'_> {
    fn get(&mut self, file: &'static str) -> Option<&str> {
        let path = self.root.join(file);
        self.read.entry(file).or_insert_with(|| std::fs::read_to_string(path).ok()).as_deref()
    }
}

/// A function as the source has it.
struct Function<'a> {
    attributes: Vec<&'a str>,
    body: &'a str,
}

/// The function of this name: the attributes above it, and what is in it.
fn function<'a>(source: &'a str, name: &str) -> Option<Function<'a>> {
    let head = format!("fn {name}(");
    let at = source.match_indices(&head).map(|(at, _)| at).find(|at| {
        let before = &source[..*at];
        before.ends_with(char::is_whitespace)
    })?;
    let line = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let indent = at - line;
    let mut attributes = Vec::new();
    for above in source[..line].lines().rev().map(str::trim) {
        match above {
            _ if above.starts_with("#[") => attributes.push(above),
            _ if above.starts_with("///") => {}
            _ => break,
        }
    }
    let end = format!("\n{}}}\n", " ".repeat(indent.min(16)));
    let rest = &source[at..];
    let length = rest.find(&end).unwrap_or(rest.len());
    Some(Function { attributes, body: &rest[..length] })
}

impl Function<'_> {
    fn is_test(&self) -> bool {
        self.attributes.contains(&"#[test]")
    }

    fn must_panic(&self) -> bool {
        self.attributes.iter().any(|attribute| attribute.starts_with("#[should_panic"))
    }

    /// The functions of `source` that it calls, runners left out.
    fn scenarios(&self, source: &str) -> BTreeSet<String> {
        let call = self.body.split_once('{').map_or("", |(_, body)| body);
        let words = call.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        let known = |word: &&str| !RUNNERS.contains(word) && source.contains(&format!("fn {word}("));
        words.filter(known).map(str::to_owned).collect()
    }
}

/// Where the tests are that are registered, not marked.
const INTEGRATION: &str = "tests/tests/integration/";

/// The name that a test of such a file is registered by.
fn name(file: &str, test: &str) -> Option<String> {
    let module = file.strip_prefix(INTEGRATION)?.strip_suffix(".rs")?.trim_end_matches("/mod");
    Some(format!("{}::{test}", module.replace('/', "::")))
}

/// What is wrong with the table; empty when nothing is. `root` is the workspace's, `registered` has the names of the
/// integration tests, without their accelerators.
#[must_use]
pub fn faults(root: &Path, registered: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut sources = Sources { root, read: HashMap::new() };
    if !catalogue().map(|race| race.number).eq(1..=COUNT) {
        faults.push(format!("the numbers are not 1 to {COUNT}, each once and in order"));
    }
    for race in catalogue() {
        let Race { number, what, rule, covers } = *race;
        if what.is_empty() || rule.is_empty() || covers.is_empty() {
            faults.push(format!("race {number}: an empty row"));
        }
        for cover in covers {
            if let Err(why) = examine(cover, &mut sources, registered) {
                faults.push(format!("race {number}: {why}"));
            }
        }
    }
    faults
}

fn examine(cover: &Cover, sources: &mut Sources<'_>, registered: &[String]) -> Result<(), String> {
    let (Cover::Model { file, .. } | Cover::Test { file, .. } | Cover::ByConstruction { file, .. }) = *cover;
    let source = sources.get(file).ok_or_else(|| format!("{file} cannot be read"))?;
    let find = |name| function(source, name).ok_or_else(|| format!("{file} has no fn {name}"));
    match *cover {
        Cover::Test { test, .. } => {
            let (name, test) = (name(file, test), find(test)?);
            if let Some(name) = name {
                return ensure(registered.contains(&name), || {
                    format!("{file}: {name} is not among the tests")
                });
            }
            ensure(test.is_test() && !test.must_panic(), || format!("{file}: not a test that passes"))
        }
        Cover::Model { test: model, twin, mutation, .. } => {
            let (model, mutated) = (find(model)?, find(twin)?);
            ensure(source.contains("#![cfg(loom)]") || file.contains("/loom_"), || {
                format!("{file}: no model")
            })?;
            ensure(model.is_test() && !model.must_panic(), || format!("{file}: not a model that passes"))?;
            ensure(mutated.is_test() && mutated.must_panic(), || format!("{file}: {twin} need not fail"))?;
            let plants = mutated.body.contains(&format!("Mutation::{mutation:?}"));
            ensure(plants, || format!("{file}: {twin} does not plant {mutation:?}"))?;
            let shared = !model.scenarios(source).is_disjoint(&mutated.scenarios(source));
            ensure(shared, || format!("{file}: {twin} is of another scenario"))
        }
        Cover::ByConstruction { argument, item, .. } => {
            ensure(!argument.is_empty(), || format!("{file}: no argument"))?;
            ensure(source.contains(item), || format!("{file} has no `{item}`"))
        }
    }
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// Every mutation there is, by the source's list.
///
/// # Panics
/// When the source cannot be read.
#[must_use]
pub fn mutations(root: &Path) -> Vec<String> {
    let source = std::fs::read_to_string(root.join("core/src/prim.rs")).expect("core/src/prim.rs");
    let (_, list) = source.split_once("pub enum Mutation {").expect("the enum");
    let (list, _) = list.split_once("\n}").expect("its end");
    let lines = list.lines().map(str::trim);
    lines
        .filter_map(|line| line.strip_suffix(','))
        .filter(|line| !line.starts_with("//"))
        .map(str::to_owned)
        .collect()
}

/// The models' sources, by path.
fn models(root: &Path) -> Vec<(PathBuf, String)> {
    let tests = root.join("tests/tests");
    let folder = |name: &str| std::fs::read_dir(tests.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let entries = folder("loom_life").chain(folder("loom_path"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
        .into_iter()
        .map(|file| (file.clone(), std::fs::read_to_string(&file).expect("a model's source")))
        .collect()
}

/// The tests in a source, by name.
fn tests(source: &str) -> impl Iterator<Item = (&str, Function<'_>)> {
    let names =
        source.lines().filter_map(|line| line.strip_prefix("fn ")?.split_once('(').map(|(name, _)| name));
    names.filter_map(|name| Some((name, function(source, name)?))).filter(|(_, f)| f.is_test())
}

/// Mutations that no twin plants: each should be.
#[must_use]
pub fn unplanted(root: &Path) -> Vec<String> {
    let models = models(root);
    let planted = |mutation: &String| {
        let name = format!("Mutation::{mutation}");
        models.iter().any(|(_, source)| {
            tests(source).any(|(_, twin)| {
                let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric());
                twin.must_panic() && twin.body.split(&name).skip(1).any(ends)
            })
        })
    };
    mutations(root).into_iter().filter(|mutation| !planted(mutation)).collect()
}

/// Models whose scenario no twin breaks: such a model shows nothing.
#[must_use]
pub fn models_without_twin(root: &Path) -> Vec<String> {
    let mut alone = Vec::new();
    for (file, source) in models(root) {
        let twins = tests(&source).filter(|(_, twin)| twin.must_panic());
        let broken: BTreeSet<String> = twins.flat_map(|(_, twin)| twin.scenarios(&source)).collect();
        for (name, model) in tests(&source).filter(|(_, model)| !model.must_panic()) {
            if model.scenarios(&source).is_disjoint(&broken) {
                alone.push(format!("{}: {name}", file.display()));
            }
        }
    }
    alone
}
