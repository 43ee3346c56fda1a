extern crate std;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Open(usize),
    Close(usize),
    Set(usize, usize),
    Unset(usize),
    SetIommu(usize),
    Get(usize, usize),
    CloseDevice(usize),
    Remove(usize),
    Add(usize),
    Bind(usize),
    CloseCdev(usize),
    Foreign(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..2usize).prop_map(Step::Open),
        1 => (0..9usize).prop_map(Step::Close),
        4 => (0..9usize, 0..2usize).prop_map(|(f, c)| Step::Set(f, c)),
        2 => (0..9usize).prop_map(Step::Unset),
        3 => (0..2usize).prop_map(Step::SetIommu),
        4 => (0..9usize, 0..3usize).prop_map(|(f, d)| Step::Get(f, d)),
        2 => (0..9usize).prop_map(Step::CloseDevice),
        1 => (0..3usize).prop_map(Step::Remove),
        2 => (0..3usize).prop_map(Step::Add),
        1 => (0..3usize).prop_map(Step::Bind),
        1 => (0..9usize).prop_map(Step::CloseCdev),
        1 => any::<bool>().prop_map(Step::Foreign),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The reference: what is open, in plain lists; every count is a length.
#[derive(Default)]
struct Model {
    /// Per group: the index of the file that has it open, and its container.
    open: [Option<usize>; 2],
    container: [Option<usize>; 2],
    /// Whether a container has a driver.
    driver: [bool; 2],
    /// Whether a device is ours.
    ours: [bool; 3],
    /// Live device files: group, device.
    files: BTreeMap<usize, (usize, usize)>,
    /// Whose own file is bound.
    bound: [Option<usize>; 3],
    foreign: bool,
}

/// Devices 0 and 1 are in group 0, device 2 in group 1; the foreign one in group 0.
fn group_of(device: usize) -> usize {
    usize::from(device == 2)
}

fn name(device: usize) -> DeviceName {
    DeviceName(device as u64)
}

impl Model {
    fn users(&self, group: usize) -> usize {
        let files = self.files.values().filter(|f| f.0 == group).count();
        files + usize::from(self.open[group].is_some() && self.container[group].is_some())
    }

    /// Detaches a group without users; whether that releases a driver.
    fn settle(&mut self, group: usize) -> bool {
        let Some(container) = self.container[group] else { return false };
        if self.users(group) > 0 {
            return false;
        }
        self.container[group] = None;
        !self.container.contains(&Some(container)) && core::mem::take(&mut self.driver[container])
    }
}

proptest! {
    #[test]
    fn random_calls_agree_with_the_reference(steps in steps()) {
        use GroupError as X;
        let vfio = Small::new();
        let groups = [(); 2].map(|()| vfio.register(false).unwrap());
        let containers = [(); 2].map(|()| vfio.open_container().unwrap());
        let alien = DeviceName(99);
        let _ = vfio.notify(groups[0], alien, BusEvent::Add).unwrap();
        let mut m = Model::default();
        // All handles ever given out: stale ones stay.
        let (mut files, mut devices, mut cdevs) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Open(g) => {
                    let bound = (0..3).any(|d| group_of(d) == g && m.bound[d].is_some());
                    let expected = if m.open[g].is_some() || m.container[g].is_some() {
                        Err(X::GroupOpen)
                    } else if bound { Err(X::DeviceBound) } else { Ok(()) };
                    let got = vfio.open_group(groups[g], false);
                    prop_assert_eq!(got.map(|_| ()), expected);
                    if let Ok(file) = got {
                        m.open[g] = Some(files.len());
                        files.push((file, g));
                    }
                }
                Step::Close(f) if f < files.len() => {
                    let (file, g) = files[f];
                    let mine = m.open[g] == Some(f);
                    let expected = mine.then(|| { m.open[g] = None; m.settle(g) }).ok_or(X::StaleFile);
                    prop_assert_eq!(vfio.close_group(file, never).map(|c| c.driver.is_some()), expected);
                }
                Step::Set(f, c) if f < files.len() => {
                    let (file, g) = files[f];
                    let expected = if m.open[g] != Some(f) { Err(X::StaleFile) }
                        else if m.container[g].is_some() { Err(X::ContainerSet) } else { Ok(()) };
                    prop_assert_eq!(vfio.set_container(file, Resolved::Container(containers[c]), never), expected);
                    if expected.is_ok() { m.container[g] = Some(c); }
                }
                Step::Unset(f) if f < files.len() => {
                    let (file, g) = files[f];
                    let expected = if m.open[g] != Some(f) { Err(X::StaleFile) } else {
                        match m.users(g) {
                            0 => Err(X::NoContainer),
                            1 => {
                                let c = m.container[g].take().unwrap();
                                Ok(!m.container.contains(&Some(c)) && core::mem::take(&mut m.driver[c]))
                            }
                            _ => Err(X::ContainerBusy),
                        }
                    };
                    prop_assert_eq!(vfio.unset_container(file, never).map(|d| d.driver.is_some()), expected);
                }
                Step::SetIommu(c) => {
                    let expected = if !m.container.contains(&Some(c)) { Err(X::NoGroups) }
                        else if m.driver[c] { Err(X::DriverSet) } else { m.driver[c] = true; Ok(()) };
                    prop_assert_eq!(vfio.set_iommu(containers[c], Rc::new(())).map_err(|e| e.0), expected);
                }
                Step::Get(f, d) if f < files.len() => {
                    let (file, g) = files[f];
                    let expected = if m.open[g] != Some(f) { Err(X::StaleFile) }
                        else if m.container[g].is_none_or(|c| !m.driver[c]) || (g == 0 && m.foreign) { Err(X::NotUsable) }
                        else if !m.ours[d] || group_of(d) != g { Err(X::NoDevice) } else { Ok(()) };
                    let got = vfio.get_device(file, name(d));
                    prop_assert_eq!(got.as_ref().map(|_| ()).map_err(|e| *e), expected);
                    if let Ok(device) = got {
                        m.files.insert(devices.len(), (g, d));
                        devices.push(Some(device));
                    }
                }
                Step::CloseDevice(n) if n < devices.len() => {
                    if let Some(device) = devices[n].take() {
                        let expected = m.files.remove(&n).map(|(g, _)| m.settle(g)).ok_or(X::NoDevice);
                        prop_assert_eq!(vfio.close_device(device, never).map(|d| d.driver.is_some()), expected);
                    }
                }
                Step::Remove(d) => {
                    let g = group_of(d);
                    let expected = if core::mem::take(&mut m.ours[d]) {
                        let before = m.files.len();
                        m.files.retain(|_, f| f.1 != d);
                        m.bound[d] = None;
                        Ok((before - m.files.len(), m.settle(g)))
                    } else { Err(X::NoDevice) };
                    let got = vfio.remove_device(groups[g], name(d), never);
                    prop_assert_eq!(got.map(|r| (r.files as usize, r.driver.is_some())), expected);
                }
                Step::Add(d) => {
                    let g = groups[group_of(d)];
                    let _ = vfio.notify(g, name(d), BusEvent::Unbound).unwrap();
                    let expected = if m.ours[d] { Err(X::DeviceKnown) } else { Ok(()) };
                    prop_assert_eq!(vfio.add_device(g, name(d)), expected);
                    m.ours[d] = true;
                }
                Step::Bind(d) => {
                    let g = group_of(d);
                    if let Ok(cdev) = vfio.open_cdev(groups[g], name(d)) {
                        prop_assert!(m.ours[d]);
                        let expected = if m.bound[d].is_some() { Err(X::BoundTwice) }
                            else if m.open[g].is_some() || m.container[g].is_some() { Err(X::GroupOpen) }
                            else { m.bound[d] = Some(cdevs.len()); Ok(()) };
                        prop_assert_eq!(vfio.bind(cdev), expected);
                        cdevs.push((cdev, d));
                    }
                }
                Step::CloseCdev(n) if n < cdevs.len() => {
                    let (cdev, d) = cdevs[n];
                    let closed = m.bound[d] == Some(n);
                    prop_assert_eq!(vfio.close_cdev(cdev).unwrap_or(false), closed);
                    if closed { m.bound[d] = None; }
                }
                Step::Foreign(bind) => {
                    let event = if bind { BusEvent::Bound(Holder::Foreign) } else { BusEvent::Unbound };
                    let fatal = bind && m.users(0) > 0;
                    let notice = if fatal { Notice::Fatal } else { Notice::Fine };
                    prop_assert_eq!(vfio.notify(groups[0], alien, event), Ok(notice));
                    m.foreign = bind;
                }
                _ => {}
            }
            prop_assert!(vfio.is_consistent());
            for (g, &group) in groups.iter().enumerate() {
                prop_assert_eq!(vfio.users(group).map(|u| u as usize), Ok(m.users(g)));
            }
            for (n, device) in devices.iter().enumerate() {
                if let Some(device) = device {
                    prop_assert_eq!(vfio.is_current(device), m.files.contains_key(&n));
                }
            }
        }
    }
}
