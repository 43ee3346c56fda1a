//! What the host cannot do without: mounted disks, swap, and the interface of the default route.

use super::obstacle::Obstacle;
use super::{Host, sysfs};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A block device: a disk, a partition, or one made of others (dm, md, bcache).
#[derive(Debug)]
struct Block {
    name: String,
    /// Its node in sysfs, without links.
    node: PathBuf,
    /// `major:minor`.
    number: String,
}

/// What the host uses, read once for all devices.
#[derive(Debug)]
pub(super) struct InUse {
    blocks: Vec<Block>,
    /// A block device's number or name, and how it is used.
    uses: Vec<(String, String)>,
    /// Network interfaces: name and node.
    interfaces: Vec<(String, PathBuf)>,
    /// Those that default routes name.
    routed: Vec<String>,
    sys: PathBuf,
    dev: PathBuf,
}

impl InUse {
    /// # Errors
    /// When a file that tells cannot be read: then nothing can be said to be free.
    pub(super) fn read(host: &Host) -> Result<Self> {
        let mut uses = mounts(host, &sysfs::must_read(&host.proc.join("self/mountinfo"))?);
        uses.extend(swaps(host, &optional(&host.proc.join("swaps"))?));
        for filesystem in sysfs::names(host.sys.join("fs/btrfs")) {
            let members = sysfs::names(host.sys.join("fs/btrfs").join(&filesystem).join("devices"));
            let used = |name| (name, format!("part of the mounted btrfs {filesystem}"));
            uses.extend(members.into_iter().map(used));
        }
        let mut routed = ipv4_defaults(&optional(&host.proc.join("net/route"))?);
        routed.extend(ipv6_defaults(&optional(&host.proc.join("net/ipv6_route"))?));
        let class = |name: &str| {
            let folder = host.sys.join("class").join(name);
            let entry = move |name: String| Some((folder.join(&name).canonicalize().ok()?, name));
            sysfs::names(host.sys.join("class").join(name)).into_iter().filter_map(entry).collect::<Vec<_>>()
        };
        let block = |(node, name): (PathBuf, String)| Block {
            number: sysfs::read(node.join("dev")).unwrap_or_default(),
            name,
            node,
        };
        Ok(Self {
            blocks: class("block").into_iter().map(block).collect(),
            uses,
            interfaces: class("net").into_iter().map(|(node, name)| (name, node)).collect(),
            routed,
            sys: host.sys.clone(),
            dev: host.dev.clone(),
        })
    }

    /// What the device at `node` (without links) carries of it.
    pub(super) fn by(&self, node: &Path) -> Vec<Obstacle> {
        let mut found = Vec::new();
        for block in self.blocks_of(node) {
            for (_, using) in self.uses.iter().filter(|(key, _)| *key == block.number || *key == block.name) {
                found.push(Obstacle::new(
                    format!("it carries {}, {using}", block.name),
                    "unmount what is on it (umount, swapoff) or choose another device; this cannot be forced",
                ));
            }
        }
        for interface in self.interfaces_of(node) {
            if self.routed.contains(&interface) {
                found.push(Obstacle::new(
                    format!("the default route goes by it ({interface})"),
                    format!(
                        "move the route to another interface (ip route, ip -6 route), or take this one down (ip link set \
                         {interface} down); this cannot be forced"
                    ),
                ));
            }
        }
        found
    }

    /// What else holds its disks, asked by opening them exclusively: file systems of other mount namespaces, ZFS,
    /// volumes that are active and not mounted, programs.
    pub(super) fn claimed(&self, node: &Path) -> Vec<Obstacle> {
        let claimed = |block: &&Block| {
            // sysfs writes `!` for the `/` of names such as cciss/c0d0.
            let path = self.dev.join(block.name.replace('!', "/"));
            let is_block = path.metadata().is_ok_and(|data| data.file_type().is_block_device());
            let opened =
                || OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(&path);
            is_block && opened().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
        };
        let obstacle = |block: &Block| {
            Obstacle::new(
                format!(
                    "it carries {}, which is in use: opening it exclusively fails with EBUSY",
                    block.name
                ),
                "stop what uses it: a volume (vgchange -an, mdadm --stop), a pool (zpool export), a container's \
                 mount, a program; this cannot be forced",
            )
        };
        self.blocks_of(node).into_iter().filter(claimed).map(obstacle).collect()
    }

    /// The disks of a device, their partitions, and all that is built on those.
    fn blocks_of(&self, node: &Path) -> Vec<&Block> {
        let mut found: BTreeSet<usize> = BTreeSet::new();
        let mut open: Vec<usize> = Vec::new();
        let paths =
            |block: &Block| block.node.starts_with(node) || multipath(block).any(|p| p.starts_with(node));
        open.extend((0..self.blocks.len()).filter(|at| paths(&self.blocks[*at])));
        while let Some(at) = open.pop() {
            if !found.insert(at) {
                continue;
            }
            let block = &self.blocks[at];
            let holders = sysfs::names(block.node.join("holders"));
            let above = |other: &Block| other.node.starts_with(&block.node) || holders.contains(&other.name);
            open.extend((0..self.blocks.len()).filter(|other| above(&self.blocks[*other])));
        }
        found.into_iter().map(|at| &self.blocks[at]).collect()
    }

    /// The interfaces of a device, and the bonds, bridges and VLANs above them.
    fn interfaces_of(&self, node: &Path) -> BTreeSet<String> {
        let own = self.interfaces.iter().filter(|(_, at)| at.starts_with(node));
        let mut open: Vec<String> = own.map(|(name, _)| name.clone()).collect();
        let mut found = BTreeSet::new();
        while let Some(name) = open.pop() {
            let at = self.sys.join("class/net").join(&name);
            if found.insert(name) {
                open.extend(sysfs::link_name(at.join("master")));
                let upper = |entry: String| entry.strip_prefix("upper_").map(ToString::to_string);
                open.extend(sysfs::names(&at).into_iter().filter_map(upper));
            }
        }
        found
    }
}

/// The controllers below an NVMe disk with native multipath, which is not a child of any of them: its parent, the
/// subsystem, links to them.
fn multipath(block: &Block) -> impl Iterator<Item = PathBuf> {
    let parent = block.node.parent().filter(|parent| {
        parent.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("nvme-subsys"))
    });
    let parent = parent.map(Path::to_path_buf);
    let names = parent.as_ref().map(sysfs::names).unwrap_or_default();
    let links = names.into_iter().filter_map(move |name| Some(parent.as_ref()?.join(name)));
    links.filter(|path| path.is_symlink()).filter_map(|path| path.canonicalize().ok())
}

/// What is mounted: by `major:minor`, and by the source's name for file systems whose numbers are not a disk's (btrfs,
/// bcachefs).
fn mounts(host: &Host, mountinfo: &str) -> Vec<(String, String)> {
    let mut mounts = Vec::new();
    for line in mountinfo.lines() {
        let (front, back) = line.split_once(" - ").unwrap_or((line, ""));
        let mut fields = front.split(' ').skip(2);
        let (Some(number), Some(point)) = (fields.next(), fields.nth(1)) else { continue };
        let using = format!("mounted at {point}");
        mounts.push((number.to_string(), using.clone()));
        if number.starts_with("0:") {
            let sources = back.split(' ').nth(1).unwrap_or_default().split(':');
            mounts.extend(sources.filter_map(|source| Some((node_name(host, source)?, using.clone()))));
        }
    }
    mounts
}

fn swaps(host: &Host, swaps: &str) -> Vec<(String, String)> {
    let names = swaps.lines().skip(1).filter_map(|line| node_name(host, line.split_whitespace().next()?));
    names.map(|name| (name, "in use as swap".to_string())).collect()
}

/// The kernel's name of the block device that a path such as `/dev/mapper/root` names.
fn node_name(host: &Host, path: &str) -> Option<String> {
    let path = host.dev.join(path.strip_prefix("/dev/")?);
    let path = path.canonicalize().unwrap_or(path);
    let by_number = || {
        use std::os::unix::fs::MetadataExt;
        let data = path.metadata().ok().filter(|data| data.file_type().is_block_device())?;
        let (major, minor) = (libc::major(data.rdev()), libc::minor(data.rdev()));
        sysfs::link_name(host.sys.join(format!("dev/block/{major}:{minor}")))
    };
    by_number().or_else(|| path.file_name()?.to_str().map(ToString::to_string))
}

/// Interfaces of `/proc/net/route` with destination and mask 0 that are up, without reject routes.
fn ipv4_defaults(routes: &str) -> Vec<String> {
    let default = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let flags = u16::from_str_radix(fields.get(3)?, 16).ok()?;
        let goes = flags & libc::RTF_UP != 0 && flags & libc::RTF_REJECT == 0;
        (goes && fields.get(1)? == &"00000000" && fields.get(7)? == &"00000000")
            .then(|| fields[0].to_string())
    };
    routes.lines().filter_map(default).collect()
}

/// Interfaces of `/proc/net/ipv6_route` with a destination of length 0; the one on `lo` is the null entry.
fn ipv6_defaults(routes: &str) -> Vec<String> {
    let default = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let interface = *fields.get(9)?;
        let all = fields[0].bytes().all(|digit| digit == b'0') && fields[1] == "00";
        (all && interface != "lo").then(|| interface.to_string())
    };
    routes.lines().filter_map(default).collect()
}

/// A file that kernels without the feature do not have.
fn optional(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::os(format!("reading {}", path.display()), &error))
        }
        read => Ok(read.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
