//! What goes wrong, and how it heals.

use std::time::Duration;

use super::{Cluster, Role};
use crate::simulation::{
    happening::{ProcessId, WorldHappening},
    network::Side,
    plan::Fault,
};

impl Cluster {
    pub(super) fn plan_fault(&mut self, index: usize) {
        let (_, interval) = self.world.plan.faults[index];
        let delay = self.world.chance.micros(1..2 * interval);
        self.world.later(delay, WorldHappening::Fault(index));
    }

    /// Something goes wrong.
    pub(super) fn fault(&mut self, index: usize) {
        if !self.world.faulty {
            return;
        }
        self.plan_fault(index);
        let (fault, _) = self.world.plan.faults[index];
        *self.world.report.faults.entry(name(fault)).or_default() += 1;
        let host = self.world.chance.index(self.processes.len());
        match fault {
            Fault::Crash => self.crash(host),
            Fault::Freeze => {
                let length = self.world.chance.micros_of_any_size(1_000..700_000);
                self.freeze(self.process(host as u8), length);
            }
            Fault::Stall => self.stall(host),
            Fault::Cut => self.cut(host, 5_000..500_000),
            Fault::Blink => self.cut(host, 200..20_000),
            Fault::Isolate => self.isolate(host),
            Fault::Break => self.break_some_session(),
            Fault::ArbiterDies => {
                if self.world.chance.hits(700) {
                    self.arbiter.plan_trouble(&mut self.world, true);
                } else {
                    self.arbiter.die(&mut self.world);
                }
            }
            Fault::ArbiterDisk => self.arbiter.plan_trouble(&mut self.world, false),
            Fault::SlowBackup => {
                let length = self.world.chance.micros(10_000..150_000);
                self.world.machines[host].slow_until = self.world.now + length;
            }
            Fault::Hang => {
                let length = self.world.chance.micros(50_000..500_000);
                self.world.machines[host].hangs_until = self.world.now + length;
            }
            Fault::FullTap => {
                let length = self.world.chance.micros_of_any_size(500..150_000);
                self.world.machines[host].tap_full_until = self.world.now + length;
            }
            Fault::Operator => self.operator_acts(host),
            Fault::Namesake => self.move_name(),
        }
    }

    fn crash(&mut self, host: usize) {
        if self.world.machines[host].alive {
            self.world.journal.line(format_args!("host {host}"), "its process dies");
            self.kill_and_restart(host as u8, 3_000..150_000);
        }
    }

    fn stall(&mut self, host: usize) {
        let until = self.world.now + self.world.chance.micros_of_any_size(1_000..90_000);
        match &mut self.processes[host].role {
            Role::Primary(shell) => shell.stall(&mut self.world, until),
            Role::Backup(shell) => shell.stall(&mut self.world, until),
            Role::Claiming(_) | Role::Down => {}
        }
    }

    /// Cuts the way to some other machine, or the way back, or both.
    fn cut(&mut self, host: usize, length: std::ops::Range<u64>) {
        let machines = self.world.arbiter() + 1;
        let other = (host + 1 + self.world.chance.index(machines - 1)) % machines;
        let length = self.world.chance.micros_of_any_size(length);
        let ways = 1 + self.world.chance.below(3);
        self.world.journal.line(
            format_args!("host {host}"),
            format_args!("cut from machine {other} for {} us, {ways}", length.as_micros()),
        );
        if ways & 1 != 0 {
            self.world.cut(host, other, length);
        }
        if ways & 2 != 0 {
            self.world.cut(other, host, length);
        }
    }

    fn isolate(&mut self, host: usize) {
        let length = self.world.chance.micros_of_any_size(10_000..400_000);
        self.world.journal.line(
            format_args!("host {host}"),
            format_args!("isolated for {} us", length.as_micros()),
        );
        for other in (0..=self.world.arbiter()).filter(|other| *other != host) {
            self.world.cut(host, other, length);
            self.world.cut(other, host, length);
        }
    }

    /// Another machine takes the name of a backup, which stands still. The next
    /// time it goes back. Whoever was started with `run` and waits for the arbiter is
    /// no backup: it would boot the guest of the one that has its name now.
    fn move_name(&mut self) {
        let Some(places) = self.world.namesakes else { return };
        let [to, from] = if self.world.moved { places } else { [places[1], places[0]] };
        if matches!(self.processes[usize::from(from)].role, Role::Claiming(_)) {
            return;
        }
        self.world.moved = !self.world.moved;
        self.world.journal.line(format_args!("host {to}"), "has the name now");
        let length = self.world.chance.micros_of_any_size(20_000..900_000);
        self.freeze(self.process(from), length);
        if !self.world.machines[usize::from(to)].alive {
            self.begin(to, false);
        }
    }

    fn break_some_session(&mut self) {
        let live = self.world.network.live();
        if live.is_empty() {
            return;
        }
        let id = live[self.world.chance.index(live.len())];
        self.world.journal.line("network", format_args!("breaks {id:?}"));
        let within = self.world.plan.timing.idle_timeout;
        self.world.break_session(id, within);
    }

    /// Nothing goes wrong any more.
    pub(super) fn heal(&mut self) {
        self.world.journal.line("cluster", "the faults are over");
        self.world.faulty = false;
        self.world.network.heal();
        for host in 0..self.processes.len() {
            let machine = &mut self.world.machines[host];
            machine.slow_until = Duration::ZERO;
            machine.hangs_until = Duration::ZERO;
            machine.tap_full_until = Duration::ZERO;
            let process = ProcessId { host: host as u8, life: machine.life };
            self.thaw(process);
        }
        self.world.later(Duration::from_millis(1), WorldHappening::ArbiterStart);
        self.world.later(Duration::from_millis(5), WorldHappening::OperatorLooks);
        // What was planned for after a cut that is no more is due now.
        for id in self.world.network.live() {
            let session = self.world.network.session(id);
            if session.is_broken() {
                for side in [Side::Primary, Side::Backup] {
                    self.world.later(Duration::from_millis(2), WorldHappening::Lost(id, side));
                }
            }
        }
    }
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Crash => "crashes",
        Fault::Freeze => "freezes",
        Fault::Stall => "stalls",
        Fault::Cut => "cuts",
        Fault::Blink => "blinks",
        Fault::Isolate => "isolations",
        Fault::Break => "breaks",
        Fault::ArbiterDies => "arbiter deaths",
        Fault::ArbiterDisk => "disk errors",
        Fault::SlowBackup => "slow phases",
        Fault::FullTap => "full taps",
        Fault::Operator => "commands",
        Fault::Namesake => "moves of a name",
        Fault::Hang => "hangs",
    }
}
