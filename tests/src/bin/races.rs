//! Prints the table of races and what covers each: `cargo run -q -p pollvisor-tests --bin races [-- --json]`.

use pollvisor_tests::races::{COUNT, Cover, Race, catalogue};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut out = io::stdout().lock();
    let printed = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => table(&mut out),
        ["--json"] => json(&mut out),
        _ => {
            eprintln!("usage: races [--json]");
            return ExitCode::from(2);
        }
    };
    // A reader that has seen enough is no failure.
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("races: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn table(out: &mut impl Write) -> io::Result<()> {
    let (mut models, mut tests, mut arguments) = (0, 0, 0);
    for Race { number, what, rule, covers } in catalogue() {
        writeln!(out, "{number:2}  {what}\n    rule: {rule}")?;
        for cover in *covers {
            match cover {
                Cover::Model { file, test, twin, mutation } => {
                    models += 1;
                    writeln!(out, "    model            {test}\n                     {file}")?;
                    writeln!(out, "                     fails with {mutation:?}: {twin}")?;
                }
                Cover::Test { file, test } => {
                    tests += 1;
                    writeln!(out, "    test             {test}\n                     {file}")?;
                }
                Cover::ByConstruction { argument, file, item } => {
                    arguments += 1;
                    writeln!(out, "    by construction  {argument}\n                     {file}: {item}")?;
                }
            }
        }
        writeln!(out)?;
    }
    let of = |kind: fn(&Cover) -> bool| catalogue().filter(|race| race.covers.iter().any(kind)).count();
    let with_model = of(|cover| matches!(cover, Cover::Model { .. }));
    let with_test = of(|cover| matches!(cover, Cover::Test { .. }));
    writeln!(
        out,
        "{COUNT} races; {models} models ({with_model} races have one), {tests} tests ({with_test} races), \
         {arguments} arguments"
    )
}

fn json(out: &mut impl Write) -> io::Result<()> {
    write!(out, "[")?;
    for (place, Race { number, what, rule, covers }) in catalogue().enumerate() {
        let comma = if place > 0 { "," } else { "" };
        write!(
            out,
            "{comma}\n{{\"number\":{number},\"race\":{},\"rule\":{},\"covers\":[",
            text(what),
            text(rule)
        )?;
        for (place, cover) in covers.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(out, "{comma}\n  {}", object(cover))?;
        }
        write!(out, "]}}")?;
    }
    writeln!(out, "\n]")
}

fn object(cover: &Cover) -> String {
    let pair = |(key, value): (&str, &str)| format!("{}:{}", text(key), text(value));
    let fields: Vec<String> = match *cover {
        Cover::Model { file, test, twin, mutation } => {
            let mutation = format!("{mutation:?}");
            let fields =
                [("kind", "model"), ("file", file), ("test", test), ("twin", twin), ("mutation", &mutation)];
            fields.map(pair).into()
        }
        Cover::Test { file, test } => [("kind", "test"), ("file", file), ("test", test)].map(pair).into(),
        Cover::ByConstruction { argument, file, item } => {
            let fields =
                [("kind", "by construction"), ("argument", argument), ("file", file), ("item", item)];
            fields.map(pair).into()
        }
    };
    format!("{{{}}}", fields.join(","))
}

/// A string as JSON has it.
fn text(value: &str) -> String {
    let mut quoted = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
