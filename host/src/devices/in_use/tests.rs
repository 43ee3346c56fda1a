use super::super::fixture::Fixture;
use super::*;

const DISK: &str = "0000:02:00.0";

/// A machine with an NVMe disk that has two partitions.
fn disk() -> (Fixture, String) {
    let fixture = Fixture::new();
    let at = fixture.pci(DISK, 0x01_0802, Some("nvme"), Some(3));
    let disk = format!("{at}/nvme/nvme0/nvme0n1");
    fixture.block(&disk, "259:0");
    fixture.block(&format!("{disk}/nvme0n1p1"), "259:1");
    fixture.block(&format!("{disk}/nvme0n1p2"), "259:2");
    (fixture, at)
}

fn carried(fixture: &Fixture, at: &str) -> Vec<String> {
    let in_use = InUse::read(&fixture.host).expect("what is in use");
    in_use.by(&fixture.path(at)).into_iter().map(|obstacle| obstacle.what).collect()
}

fn mount(fixture: &Fixture, line: &str) {
    fixture.file("proc/self/mountinfo", format!("1 1 0:2 / / rw - rootfs rootfs rw\n{line}\n"));
}

#[test]
fn a_disk_is_free_until_a_partition_is_mounted() {
    let (fixture, at) = disk();
    mount(&fixture, "30 1 259:10 / /other rw,relatime shared:1 - ext4 /dev/sda rw");
    assert!(carried(&fixture, &at).is_empty());
    mount(&fixture, "30 1 259:1 / /srv rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw");
    assert_eq!(carried(&fixture, &at), ["it carries nvme0n1p1, mounted at /srv"]);
    let other = fixture.pci("0000:02:00.1", 0x02_0000, Some("igb"), None);
    assert!(carried(&fixture, &other).is_empty(), "another function is not the disk");
}

#[test]
fn a_volume_on_a_raid_on_a_partition_counts() {
    let (fixture, at) = disk();
    let disk = format!("{at}/nvme/nvme0/nvme0n1");
    fixture.block("sys/devices/virtual/block/md0", "9:0");
    fixture.block("sys/devices/virtual/block/md0/md0p1", "259:7");
    fixture.block("sys/devices/virtual/block/dm-0", "254:0");
    fixture.link(&format!("{disk}/nvme0n1p2/holders/md0"), &fixture.path("sys/devices/virtual/block/md0"));
    fixture.link(
        "sys/devices/virtual/block/md0/md0p1/holders/dm-0",
        &fixture.path("sys/devices/virtual/block/dm-0"),
    );
    assert!(carried(&fixture, &at).is_empty());
    mount(&fixture, "30 1 254:0 / / rw - xfs /dev/mapper/root rw");
    assert_eq!(carried(&fixture, &at), ["it carries dm-0, mounted at /"]);
}

#[test]
fn holders_that_loop_end() {
    let (fixture, at) = disk();
    for (name, other) in [("dm-0", "dm-1"), ("dm-1", "dm-0")] {
        fixture.block(&format!("sys/devices/virtual/block/{name}"), "254:9");
        let target = fixture.path(&format!("sys/devices/virtual/block/{other}"));
        fixture.link(&format!("sys/devices/virtual/block/{name}/holders/{other}"), &target);
    }
    let target = fixture.path("sys/devices/virtual/block/dm-0");
    fixture.link(&format!("{at}/nvme/nvme0/nvme0n1/holders/dm-0"), &target);
    assert!(carried(&fixture, &at).is_empty());
}

#[test]
fn a_multipath_disk_is_below_its_subsystem() {
    let fixture = Fixture::new();
    let at = fixture.pci(DISK, 0x01_0802, Some("nvme"), Some(3));
    let controller = fixture.folder(&format!("{at}/nvme/nvme0"));
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    fixture.block(&format!("{subsystem}/nvme0n1"), "259:0");
    fixture.block(&format!("{subsystem}/nvme0n1/nvme0n1p1"), "259:1");
    mount(&fixture, "30 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw");
    assert!(carried(&fixture, &at).is_empty(), "not linked yet");
    fixture.link(&format!("{subsystem}/nvme0"), &controller);
    assert_eq!(carried(&fixture, &at), ["it carries nvme0n1p1, mounted at /"]);
}

#[test]
fn btrfs_has_numbers_of_its_own() {
    let (fixture, at) = disk();
    mount(&fixture, "30 1 0:26 /@ / rw - btrfs /dev/nvme0n1p2 rw,subvolid=256");
    assert_eq!(carried(&fixture, &at), ["it carries nvme0n1p2, mounted at /"]);
    // The second disk of a file system is not named as a source.
    mount(&fixture, "30 1 0:26 /@ / rw - btrfs /dev/sda rw");
    assert!(carried(&fixture, &at).is_empty());
    fixture.link("sys/fs/btrfs/abc/devices/nvme0n1", &fixture.path(&format!("{at}/nvme/nvme0/nvme0n1")));
    assert_eq!(carried(&fixture, &at), ["it carries nvme0n1, part of the mounted btrfs abc"]);
}

#[test]
fn swap_counts_by_any_name() {
    let (fixture, at) = disk();
    let header = "Filename\tType\tSize\tUsed\tPriority\n";
    fixture.file("proc/swaps", format!("{header}/swapfile file 1 0 -2\n"));
    assert!(carried(&fixture, &at).is_empty());
    fixture.file("dev/nvme0n1p2", "");
    fixture.link("dev/mapper/swap", &fixture.path("dev/nvme0n1p2"));
    fixture.file("proc/swaps", format!("{header}/dev/mapper/swap partition 1 0 -2\n"));
    assert_eq!(carried(&fixture, &at), ["it carries nvme0n1p2, in use as swap"]);
}

/// A machine with a NIC, eth0.
fn nic() -> (Fixture, String) {
    let fixture = Fixture::new();
    let at = fixture.pci("0000:01:00.0", 0x02_0000, Some("igb"), Some(2));
    fixture.net(&format!("{at}/net/eth0"));
    (fixture, at)
}

fn route(fixture: &Fixture, interface: &str) {
    let header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
    let subnet = format!("{interface}\t000A0A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n");
    let default = format!("{interface}\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n");
    fixture.file("proc/net/route", format!("{header}{subnet}{default}"));
}

#[test]
fn the_default_route_by_the_interface_itself() {
    let (fixture, at) = nic();
    assert!(carried(&fixture, &at).is_empty());
    route(&fixture, "eth1");
    assert!(carried(&fixture, &at).is_empty());
    route(&fixture, "eth0");
    assert_eq!(carried(&fixture, &at), ["the default route goes by it (eth0)"]);
}

#[test]
fn the_default_route_through_a_vlan_on_a_bond() {
    let (fixture, at) = nic();
    fixture.net("sys/devices/virtual/net/bond0");
    fixture.net("sys/devices/virtual/net/bond0.5");
    fixture.link(&format!("{at}/net/eth0/master"), &fixture.path("sys/devices/virtual/net/bond0"));
    fixture.link(
        "sys/devices/virtual/net/bond0/upper_bond0.5",
        &fixture.path("sys/devices/virtual/net/bond0.5"),
    );
    route(&fixture, "bond0.5");
    assert_eq!(carried(&fixture, &at), ["the default route goes by it (bond0.5)"]);
}

#[test]
fn the_default_route_of_ipv6() {
    let (fixture, at) = nic();
    let zero = "0".repeat(32);
    let line = |interface: &str| format!("{zero} 00 {zero} 00 fe80 00000400 1 0 00000003 {interface}\n");
    fixture.file("proc/net/ipv6_route", line("lo"));
    assert!(carried(&fixture, &at).is_empty());
    fixture.file("proc/net/ipv6_route", line("eth0"));
    assert_eq!(carried(&fixture, &at).len(), 1);
}

#[test]
fn nothing_is_free_when_the_mounts_cannot_be_read() {
    let (fixture, _) = disk();
    std::fs::remove_file(fixture.path("proc/self/mountinfo")).expect("the file");
    let error = InUse::read(&fixture.host).expect_err("no mounts");
    assert_eq!(error.errno(), Some(libc::ENOENT));
}

#[test]
fn malformed_files_name_nothing() {
    let (fixture, at) = disk();
    mount(&fixture, "x\n\n1 2\n - - -\n1 1 0:9 / /x rw - btrfs");
    fixture.file("proc/swaps", "\n\n");
    fixture.file("proc/net/route", "eth0\n\neth0 00000000 0 zz\neth0 00000000 0 0003\n");
    fixture.file("proc/net/ipv6_route", "0 00\n\n");
    assert!(carried(&fixture, &at).is_empty());
}
