//! `pollvisor mdev`, and `pollvisor run` with what it made.

use super::{ONE, PARENT, TWO, available, fresh, made, removed, unload};
use crate::lab::Context;
use crate::lab::scenarios::refusals::{refused, run};
use pollvisor::devices::{Host, mdev};
use pollvisor::error::{Error, Result};
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const OTHER: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";

/// What the command prints, when it succeeds.
fn said(arguments: &[&str]) -> Result<String> {
    let output = run(arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_string();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("{arguments:?}: {}: {error}", output.status)))
}

fn listed() -> Result<Value> {
    serde_json::from_str(&said(&["mdev", "list", "--json"])?).map_err(|e| Error::new(format!("no JSON: {e}")))
}

fn is(what: &str, found: impl PartialEq + std::fmt::Debug, expected: impl std::fmt::Debug) -> Result<()> {
    let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
    if found == expected { Ok(()) } else { Err(Error::new(format!("{what}: {found} instead of {expected}"))) }
}

pub(super) fn made_and_removed(context: &mut Context) -> Result<()> {
    let host = fresh()?;
    let offer = |id: &str, name: &str, available: u32| {
        json!({ "parent": "mtty", "id": id, "name": name, "description": null, "available": available,
                "device_api": "vfio-pci" })
    };
    let offers =
        |one, two| json!([offer(ONE, "Single port serial", one), offer(TWO, "Dual port serial", two)]);
    is("the list", listed()?, json!({ "types": offers(24, 12), "devices": [] }))?;
    is("what create says", said(&["mdev", "create", PARENT, ONE, &UUID.to_uppercase()])?, UUID)?;
    let second = said(&["mdev", "create", PARENT, TWO])?;
    let list = listed()?;
    // Two ports less, for two; one, for one.
    is("the types", &list["types"], offers(21, 10))?;
    let devices = list["devices"].as_array().cloned().unwrap_or_default();
    is("how many devices", devices.len(), 2)?;
    for (uuid, kind) in [(UUID, ONE), (&second, TWO)] {
        let device = devices.iter().find(|device| device["uuid"] == uuid).cloned().unwrap_or_default();
        let group = &device["iommu_group"];
        let expected = json!({ "uuid": uuid, "parent": "mtty", "mdev_type": kind, "driver": "mtty", "iommu_group": group });
        is("a device", &device, &expected)?;
        if !group.is_u64() {
            return Err(Error::new(format!("no group: {device}")));
        }
    }
    let table = said(&["mdev", "list"])?;
    for word in [PARENT, ONE, TWO, "Dual port serial", "21", "vfio-pci", UUID, &second] {
        if !table.contains(word) {
            return Err(Error::new(format!("no {word} in {table}")));
        }
    }
    context.note(table);
    is("what remove says", said(&["mdev", "remove", UUID])?, UUID)?;
    is("what remove says", said(&["mdev", "remove", &second])?, &second)?;
    removed(&host, &[])
}

pub(super) fn refusals(context: &mut Context) -> Result<()> {
    let host = fresh()?;
    let create = |more: &[&str]| run(&[&["mdev", "create"][..], more].concat());
    let remove = |uuid: &str| run(&["mdev", "remove", uuid]);
    for bad in
        ["", "x", "83b8f4f2509f382f3c1ee6bfe0fa1001", "83b8f4f2-509f-382f-3c1e-e6bfe0fa100g", "../mtty"]
    {
        refused(&create(&[PARENT, ONE, bad])?, &["EINVAL", "try:"])?;
        refused(&remove(bad)?, &["EINVAL"])?;
    }
    refused(&create(&[PARENT, "mtty-3", UUID])?, &["mtty-3", "EINVAL", "mtty-1, mtty-2"])?;
    refused(&create(&["0000:00:02.0", ONE, UUID])?, &["0000:00:02.0", "ENODEV", "mdev list"])?;
    refused(&remove(UUID)?, &[UUID, "ENODEV", "mdev list"])?;
    removed(&host, &[])?;

    let first = mdev::create(&host, PARENT, ONE, Some(UUID))?;
    refused(&create(&[PARENT, ONE, UUID])?, &["EEXIST", "another UUID"])?;
    refused(&create(&[PARENT, TWO, UUID])?, &["EEXIST", "another UUID"])?;
    let nobody = Command::new("./pollvisor")
        .args(["mdev", "create", PARENT, ONE, OTHER])
        .stdin(Stdio::null())
        .uid(65534)
        .output()
        .map_err(|e| Error::os("starting ./pollvisor", &e))?;
    refused(&nobody, &["EACCES", "root"])?;
    let mut all = vec![first];
    for _ in 0..23 {
        all.push(made(&host)?);
    }
    for kind in [ONE, TWO] {
        let output = create(&[PARENT, kind, OTHER])?;
        refused(&output, &["ENOSPC", "no instances are left"])?;
        context.note(String::from_utf8_lossy(&output.stderr).trim_end());
    }
    if mdev::devices(&host).len() != 24 {
        return Err(Error::new(format!("not 24: {:?}", mdev::devices(&host))));
    }
    // One port is left, and two are wanted.
    mdev::remove(&host, &all.swap_remove(5).to_string())?;
    refused(&create(&[PARENT, TWO, OTHER])?, &["ENOSPC", "no instances are left"])?;
    removed(&host, &all)?;
    not_attached(context, &host)?;

    // The parent goes, and what it made with it.
    made(&host)?;
    if !unload()? || !mdev::devices(&host).is_empty() || available(&host, ONE).is_some() {
        return Err(Error::new("the parent does not go with what nobody uses"));
    }
    refused(&create(&[PARENT, ONE, UUID])?, &["ENODEV", "load its driver"])?;
    let nothing = run(&["mdev", "list"])?;
    if !nothing.status.success()
        || !String::from_utf8_lossy(&nothing.stderr).contains("no device of this host")
    {
        return Err(Error::new(format!("an empty list: {nothing:?}")));
    }
    Ok(())
}

/// One that is not there, one whose interrupts would not be heard, and one that its driver has left.
fn not_attached(context: &mut Context, host: &Host) -> Result<()> {
    let path = format!("path=/sys/bus/mdev/devices/{UUID}");
    let attach = |more: &[&str]| run(&[&["run", "--device", &path][..], more].concat());
    refused(&attach(&[])?, &[UUID, "ENODEV", "mdev list"])?;
    let uuid = mdev::create(host, PARENT, ONE, Some(UUID))?;
    let split = ["--delivery", "irqfd", "--irqchip", "split"];
    refused(&attach(&split)?, &[UUID, "INTx is its only interrupt", "--irqchip kernel"])?;
    std::fs::write("/sys/bus/mdev/drivers/mtty/unbind", UUID).map_err(|e| Error::os("unbinding it", &e))?;
    let output = attach(&[])?;
    refused(&output, &[UUID, "no driver", "pollvisor mdev remove"])?;
    context.note(String::from_utf8_lossy(&output.stderr).trim_end());
    removed(host, &[uuid])
}

/// Its line by VFIO's loopback, as a user would.
pub(super) fn runs(context: &mut Context) -> Result<()> {
    let host = fresh()?;
    let uuid = made(&host)?;
    let path = format!("path=/sys/bus/mdev/devices/{uuid}");
    for delivery in ["polled", "irqfd", "blocking"] {
        let report = said(&[
            "run",
            "--device",
            &path,
            "--interrupt",
            "intx",
            "--delivery",
            delivery,
            "-D",
            "500ms",
            "-i",
            "10ms",
            "--warm-up",
            "0",
            "--json",
        ])?;
        let report: Value = serde_json::from_str(&report).map_err(|e| Error::new(format!("no JSON: {e}")))?;
        let ledger = &report["ledger"];
        let count = |key: &str| ledger[key].as_u64().unwrap_or(u64::MAX);
        if count("sent") == 0 || count("sent") != count("delivered") + count("merged") + count("dropped") {
            return Err(Error::new(format!("{delivery}: the ledger does not add up: {ledger}")));
        }
        context.note(format!("{delivery}: {ledger}"));
    }
    removed(&host, &[uuid])
}
