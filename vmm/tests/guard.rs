//! Pages that are captured behind userfaultfd while the guest goes on writing
//! are those of the pause.

mod guest;

use std::{sync::Arc, time::Duration};

use checkpoint::{PAGE_BYTES, PageNumber, PageRun, PageSet};
use guest::{Rig, config, elf, require_kvm};
use romulus_vmm::{
    boot::BootProtocol,
    dirty::DirtyTracking,
    memory::{
        GuestRam,
        guard::{Userfault, WriteGuard},
    },
};

/// A copy of `pages`, rescued from writers or taken in time.
fn capture(guard: &WriteGuard, ram: &GuestRam, mut pages: PageSet) -> (u64, Vec<(u64, Vec<u8>)>) {
    let mut copies = Vec::new();
    let mut rescued = 0;
    let mut take = |page: PageNumber| {
        let run = PageRun { first: page, count: 1 };
        let mut copy = vec![0; PAGE_BYTES];
        ram.copy_out(run, &mut copy);
        copies.push((page.get(), copy));
        guard.release(run).unwrap();
    };
    while !pages.is_empty() {
        // A while for the guest, so that it is it who is faster.
        match guard.next_fault(Duration::from_millis(2)).unwrap() {
            Some(page) if pages.remove(page) => {
                rescued += 1;
                take(page);
            }
            Some(page) => guard.wake(page).unwrap(),
            None => pages.take_runs(64).iter().flat_map(|run| run.pages()).for_each(&mut take),
        }
    }
    copies.sort();
    (rescued, copies)
}

#[test]
fn what_is_captured_behind_a_running_guest_is_what_it_was_in_the_pause() {
    if !require_kvm() {
        return;
    }
    let mut rig = Rig::new(&config(1, DirtyTracking::Auto));
    rig.boot(&elf(guest::scattering(), false), BootProtocol::Auto);
    let ram = Arc::clone(rig.vm.memory());
    let guard = match Userfault::open().and_then(|userfault| WriteGuard::new(&userfault, &ram)) {
        Ok(guard) => guard,
        Err(error) => {
            let required = std::env::var("ROMULUS_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|need| need == "uffd"), "{error}");
            println!("skipped: {error}");
            return;
        }
    };
    rig.vm.resume().unwrap();
    rig.await_count(1000);
    rig.vm.pause().unwrap();
    rig.vm.start_dirty_log().unwrap();
    let mut rescued_in_all = 0;
    for _ in 0..10 {
        rig.vm.resume().unwrap();
        rig.await_count(rig.counter() + 2000);
        rig.vm.pause().unwrap();
        let mut pages = rig.page_set();
        rig.vm.harvest(&mut pages).unwrap();
        assert!(pages.len() > 100, "the guest wrote {} pages", pages.len());
        let then = rig.image();
        for run in pages.runs(u64::MAX) {
            guard.protect(run).unwrap();
        }
        rig.vm.resume().unwrap();
        let (rescued, copies) = capture(&guard, &ram, pages);
        rescued_in_all += rescued;
        for (page, copy) in copies {
            let at = page as usize * PAGE_BYTES;
            assert!(then[at..at + PAGE_BYTES] == copy, "page {page:#x} is another one");
        }
        rig.await_count(rig.counter() + 100);
        rig.vm.pause().unwrap();
    }
    assert!(rescued_in_all > 10, "the guest was never faster than the copier");
}
