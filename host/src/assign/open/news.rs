//! What the bus tells of the members of groups that are open.

use super::super::members::{device_name, holder};
use super::{Open, Opener};
use crate::devices::members;
use pollvisor_core::group::{BusEvent, DeviceName, GroupId, Holder, Notice};

impl Opener {
    /// The bus told something of a device, by its name and, where there still is one, its driver.
    pub fn notify(&self, name: &str, event: BusEvent) -> Option<(u32, Notice)> {
        let open = self.lock();
        let named = open.groups.iter().find_map(|(n, g)| Some((*n, g.id, *g.names.get(name)?)));
        let (number, id, device) = named.or_else(|| self.appeared(&open, name))?;
        Some((number, self.tables.notify(id, device, event).ok()?))
    }

    /// Looks at the members of every open group again: news was lost.
    pub fn look_again(&self) -> Vec<(u32, String, Notice)> {
        let groups: Vec<u32> = self.lock().groups.keys().copied().collect();
        let mut notices = Vec::new();
        for number in groups {
            for member in members(&self.host, number) {
                let event =
                    member.driver.as_ref().map_or(BusEvent::Unbound, |_| BusEvent::Bound(holder(&member)));
                if let Some((_, notice)) = self.notify(&member.name, event) {
                    notices.push((number, member.name, notice));
                }
            }
        }
        notices
    }

    /// Who holds a device now, by the driver that its group's folder shows.
    #[must_use]
    pub fn holder(&self, number: u32, name: &str) -> Option<Holder> {
        members(&self.host, number).iter().find(|member| member.name == name).map(holder)
    }

    /// A device that was not in its group when that was opened.
    fn appeared(&self, open: &Open, name: &str) -> Option<(u32, GroupId, DeviceName)> {
        let of = |number: &&u32| members(&self.host, **number).iter().any(|member| member.name == name);
        let number = *open.groups.keys().find(of)?;
        Some((number, open.groups.get(&number)?.id, device_name(name)))
    }
}
