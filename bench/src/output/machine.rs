//! The machine in the results, as `pollvisor::machine::Machine` wrote it: read from this run or from an earlier file.

use pollvisor::accel::Accelerator;
use serde_json::Value;

/// A property as text; empty where there is none.
pub fn text(machine: &Value, key: &str) -> String {
    match &machine[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The first line of every output: what took the interrupts.
pub fn headline(machine: &Value) -> &'static str {
    // Files from before there was another have no such property.
    if machine["accelerator"] == Accelerator::Software.key() {
        Accelerator::Software.headline()
    } else {
        Accelerator::Kvm.headline()
    }
}

/// In a line, as `Machine::line` has it.
pub fn line(machine: &Value) -> String {
    let khz = machine["tsc_khz"].as_u64().unwrap_or(0);
    format!(
        "Linux {}, {}{}, TSC {}.{:03} MHz, {} by {}, guest idle: {}{}",
        text(machine, "kernel"),
        text(machine, "cpu"),
        if machine["hypervisor"] == true { " (itself a guest)" } else { "" },
        khz / 1000,
        khz % 1000,
        text(machine, "source"),
        text(machine, "delivery"),
        text(machine, "idle"),
        if machine["locked"] == true { "" } else { ", memory not locked" },
    )
}

/// What is not as it should be for figures to be trusted.
pub fn warnings(machine: &Value) -> Vec<String> {
    let warnings = machine["warnings"].as_array().into_iter().flatten();
    warnings.filter_map(|warning| Some(warning.as_str()?.to_string())).collect()
}

/// What makes two machines' figures incomparable, each with both values.
pub fn differences(one: &Value, other: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    for key in ["accelerator", "cpu", "kernel", "hypervisor", "idle", "source", "tsc_khz"] {
        let same = match (one[key].as_u64(), other[key].as_u64()) {
            // The rate is measured anew by each run: a thousandth either way.
            (Some(one), Some(other)) => one.abs_diff(other) <= one.max(other) / 1000,
            _ if key == "accelerator" => headline(one) == headline(other),
            _ => one[key] == other[key],
        };
        if !same {
            differences.push(format!("{key}: {} there, {} here", text(one, key), text(other, key)));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn machine() -> Value {
        json!({"kernel": "6.1", "cpu": "X", "tsc_khz": 2_595_725, "hypervisor": true, "idle": "none", "pinned": true})
    }

    #[test]
    fn only_what_matters_makes_a_difference() {
        let mut other = machine();
        other["tsc_khz"] = 2_597_000.into();
        other["pinned"] = false.into();
        assert!(differences(&machine(), &other).is_empty());
        other["accelerator"] = "kvm".into();
        assert!(differences(&machine(), &other).is_empty(), "older files are of KVM");
        other["accelerator"] = "software".into();
        assert_eq!(differences(&machine(), &other), ["accelerator:  there, software here"]);
        other["accelerator"] = Value::Null;
        other["tsc_khz"] = 2_600_000.into();
        other["hypervisor"] = false.into();
        other["cpu"] = Value::Null;
        let differences = differences(&machine(), &other);
        assert_eq!(differences.len(), 3, "{differences:?}");
        assert_eq!(differences[0], "cpu: X there,  here");
    }

    #[test]
    fn it_says_what_the_machine_itself_says() {
        let clock = pollvisor::clock::Clock::from_khz(2_595_725);
        let mut machine = pollvisor::machine::Machine::this(Accelerator::Kvm, clock);
        (machine.source, machine.delivery, machine.idle) = ("a".into(), "b".into(), "c".into());
        for locked in [true, false] {
            machine.locked = locked;
            assert_eq!(line(&serde_json::to_value(&machine).unwrap()), machine.line());
        }
    }
}
