use super::*;

const GUEST: &str = "\
console: [    3.913264] BUG: TASK stack guard page was hit at 00000000ad7a0d2c (stack is 00000000c30e5c3d..000000004f9d63a1)
console: [    3.913270] Oops: stack guard page: 0000 [#1] PREEMPT SMP NOPTI
console: [    3.913275] CPU: 0 UID: 0 PID: 81 Comm: udhcpc Not tainted 6.12.57+deb12-amd64 #1  Debian 6.12.57-1~bpo12+1
console: [    3.913281] RIP: 0010:error_entry+0x1e/0x140
console: [    3.913290] RSP: 0018:ffffc900001a8000 EFLAGS: 00010087
console: [    3.913293] RAX: ffff88807dd2cdc0 RBX: 0000000000000000 RCX: ffffffff81e01227
console: [    3.913295] RDX: 0000000000000000 RSI: ffffffff81e00b69 RDI: ffffc900001a8078
console: [    3.913297] RBP: ffff88807dd2cdc0 R08: 0000000000000000 R09: 0000000000000000
console: [    3.913305] CR2: ffffc900001a7ff8 CR3: 0000000004c1e000 CR4: 00000000003506f0
pollvisor: the guest panicked";
const MEMORY: u64 = 256 << 20;

fn lab() -> Areas {
    Areas { starts: vec![0xffff_8880_7dd0_0000, 0xffff_8880_7de0_0000], size: 0x10_0000 }
}

fn scenario(text: &str, why: &str) -> Option<Fault> {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    Fault::in_scenario(&lines, why, &lab(), MEMORY)
}

#[test]
fn a_guest_that_crashed_in_the_labs_per_cpu_area() {
    let why = "the guest does not say `guest: exchanged `; it ended: exit status: 4, 9.1s";
    assert_eq!(scenario(GUEST, why), Some(Fault::LabPerCpu));
    let by_rbp = GUEST.replace("RAX: ffff88807dd2cdc0", "RAX: 0000000000000000");
    assert_eq!(scenario(&by_rbp, why), Some(Fault::LabPerCpu));
    let neither = by_rbp.replace("RBP: ffff88807dd2cdc0", "RBP: ffff888004c1e000");
    assert_eq!(scenario(&neither, why), None, "its own memory: our crash");
    let elsewhere = GUEST.replace("ffff88807dd2cdc0", "ffff88807fd2cdc0");
    assert_eq!(scenario(&elsewhere, why), None, "no per-CPU area");
    let no_oops = GUEST.lines().filter(|line| crash(line).is_none()).collect::<Vec<_>>().join("\n");
    assert_eq!(scenario(&no_oops, why), None, "a register that no crash printed");
    let lines: Vec<String> = GUEST.lines().map(str::to_owned).collect();
    assert_eq!(Fault::in_scenario(&lines, why, &lab(), 4 << 30), None, "memory that the guest has itself");
    assert_eq!(Fault::in_scenario(&lines, why, &Areas::default(), MEMORY), None, "areas not known");
}

#[test]
fn a_guest_with_the_labs_registers() {
    let why = "still running after 200 s: vCPU 0 is at 0xffffffffc03ffc50, in the lab's own kernel: the emulator has mixed up the two";
    assert_eq!(scenario("", why), Some(Fault::LabRegisters));
    assert_eq!(scenario("", "still running after 200 s"), None, "a hang of ours");
    assert_eq!(scenario("", "panicked"), None);
}

#[test]
fn an_assertion_of_ours_is_no_fault_of_the_emulators() {
    let why = "vfio-msix[1]: 1001 fired, 1000 sent, 0 by irqfd";
    assert_eq!(scenario("igb: 1000 of 1000\nthread poller 0: S, call 232", why), None);
    assert_eq!(scenario("console: guest: up after 2.11 s, 1 CPUs", "exit code 3, not 0"), None);
}

const STACK: &str = "\
[   41.733514] kvm_amd: kvm [211]: vcpu0, guest rIP: 0xffffffff81003f2b unhandled WRMSR(0xc0010115) = 0x0
[   12.020107] BUG: TASK stack guard page was hit at 00000000d0e7a69d (stack is 000000006bd3e8a5..00000000b9a2f4ce)
[   12.020111] Oops: stack guard page: 0000 [#1] PREEMPT SMP NOPTI
[   12.020117] CPU: 1 UID: 0 PID: 219 Comm: vCPU 0 Not tainted 6.12.57+deb12-amd64 #1  Debian 6.12.57-1~bpo12+1
[   12.020123] RIP: 0010:error_entry+0x1e/0x140
[   42.101113] Kernel panic - not syncing: Fatal exception in interrupt";

#[test]
fn a_stack_overrun_with_the_guests_clock() {
    assert_eq!(Fault::in_lab(STACK), Some(Fault::GuestClock));
    let by_qemu = STACK.replace("Comm: vCPU 0", "Comm: CPU 0/KVM");
    assert_eq!(Fault::in_lab(&by_qemu), Some(Fault::GuestClock), "with QEMU as the VMM");
    let forward = STACK.replace("[   12.", "[   41.8");
    assert_eq!(Fault::in_lab(&forward), None, "time goes on: our crash");
    let poller = STACK.replace("Comm: vCPU 0", "Comm: poller 0");
    assert_eq!(Fault::in_lab(&poller), None, "another thread");
    let other = STACK.replace("stack guard page", "unable to handle page fault");
    assert_eq!(Fault::in_lab(&other), None, "another crash");
}

/// As it was seen, in `linux: boot time beside QEMU's`, with the second guest of that lab running.
const UNDER_QEMU: &str = "\
[   15.549351] kvm: kvm [216]: vcpu0, guest rIP: 0xffffffff8109e458 Unhandled WRMSR(0xc0010007) = 0xffff
[   39.223592] BUG: TASK stack guard page was hit at 000000005e4fb4ad (stack is 000000001faff964..000000007d02654c)
[   39.225468] Oops: stack guard page: 0000 [#1] PREEMPT SMP NOPTI
[   39.225898] CPU: 0 UID: 0 PID: 218 Comm: ld-linux-x86-64 Not tainted 6.12.117+deb12-amd64 #1  Debian 6.12.117-1~deb12u1
[   39.226125] RIP: 0010:irqentry_enter+0x15/0x50
[   39.227207] RAX: 4a7bcc030666028e RBX: ffffc900004640a8 RCX: ffffffff81e01928";

#[test]
fn a_stack_overrun_under_qemu_is_none_of_ours() {
    assert_eq!(Fault::in_lab(UNDER_QEMU), Some(Fault::QemuAsVmm));
    for ours in ["vCPU 0", "poller 0", "pv-deferred", "pollvisor"] {
        assert_eq!(Fault::in_lab(&UNDER_QEMU.replace("ld-linux-x86-64", ours)), None, "{ours}");
    }
    assert_eq!(Fault::in_lab(&UNDER_QEMU.replace("stack guard page", "general protection fault")), None);
}

const INT3: &str = "\
[   33.104412] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI
[   33.104419] CPU: 1 UID: 0 PID: 0 Comm: swapper/1 Not tainted 6.12.57+deb12-amd64 #1  Debian 6.12.57-1~bpo12+1
[   33.104424] RIP: 0010:finish_task_switch.isra.0+0x8e/0x2c0
[   33.104431] Code: 00 0f 1f 44 00 00";

#[test]
fn code_that_was_changed_and_is_executed_as_it_was() {
    assert_eq!(Fault::in_lab(INT3), Some(Fault::StaleCode));
    assert_eq!(Fault::in_lab(&INT3.replace("finish_task_switch.isra.0", "vfio_pci_core_close")), None);
    assert_eq!(Fault::in_lab(&INT3.replace("Oops: int3", "Oops")), None);
}

#[test]
fn a_lab_that_is_gone_without_a_word() {
    assert_eq!(Fault::in_lab("[    3.061289] lab: command starts at 3.01 s"), Some(Fault::Silent));
    let sysrq =
        "[   10.1] sysrq: Trigger a crash\n[   10.2] Kernel panic - not syncing: sysrq triggered crash";
    assert_eq!(Fault::in_lab(sysrq), None, "it said why");
    let bug = "[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000000";
    assert_eq!(Fault::in_lab(bug), None);
}
