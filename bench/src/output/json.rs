//! The results as JSON, as `bench/schema.json` describes them, and back.

use super::Extra;
use crate::model::Results;
use pollvisor::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;

/// The number of the layout that is written, and the only one that is read.
pub const FORMAT: u32 = 1;

/// The properties in their order, and what a subcommand adds.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    results: &'a Results,
    #[serde(flatten)]
    extra: BTreeMap<&'a String, &'a serde_json::Value>,
}

/// The document.
///
/// # Errors
/// When a figure is not a number: JSON has none for it.
pub fn json(results: &Results, extra: &Extra) -> Result<String> {
    let failed = |e: serde_json::Error| Error::new(format!("writing JSON: {e}"));
    // What the results say themselves is not replaced.
    let own = serde_json::to_value(results).map_err(failed)?;
    let extra = extra.json.iter().filter(|(key, _)| own.get(key).is_none()).collect();
    let text = serde_json::to_string_pretty(&Document { results, extra }).map_err(failed)?;
    parse(&text).map_err(|e| e.context("a result that JSON cannot hold"))?;
    Ok(text + "\n")
}

/// Reads a document.
///
/// # Errors
/// Where it is not one.
pub fn parse(text: &str) -> Result<Results> {
    let results: Results = serde_json::from_str(text).map_err(|e| Error::new(e.to_string()))?;
    if results.format != FORMAT {
        return Err(Error::new(format!("format {} is not known; {FORMAT} is", results.format)));
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sample;
    use serde_json::Value;

    #[test]
    fn more_of_a_subcommand_is_there_and_replaces_nothing() {
        let mut extra = sample::extra();
        extra.json.insert("format".into(), 7.into());
        let document: Value = serde_json::from_str(&json(&sample::results(), &extra).unwrap()).unwrap();
        assert_eq!((&document["format"], &document["goals"][0]["met"]), (&1.into(), &true.into()));
    }

    #[test]
    fn every_property_is_described() {
        fn walk(schema: &Value, at: &str) {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let described = property["description"].is_string() || property.get("$ref").is_some();
                assert!(described || property.get("const").is_some(), "{at}/{name} has no description");
                walk(property, &format!("{at}/{name}"));
            }
            if schema["items"].is_object() {
                walk(&schema["items"], &format!("{at}/items"));
            }
            for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
                walk(definition, &format!("{at}/{name}"));
            }
        }
        walk(&serde_json::from_str(include_str!("../../schema.json")).unwrap(), "");
    }

    #[test]
    fn what_is_not_a_number_or_of_another_format_is_refused() {
        let mut results = sample::results();
        results.paths[0].p50_ns = f64::NAN;
        assert!(json(&results, &Extra::default()).unwrap_err().to_string().contains("cannot hold"));
        results.paths[0].p50_ns = 1.0;
        results.format = 7;
        assert!(json(&results, &Extra::default()).unwrap_err().to_string().contains("format 7"));
        assert!(parse("").is_err());
        assert!(parse("[1]").is_err());
    }
}
