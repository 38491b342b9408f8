//! How processes begin, change their role, stand still and end.

use std::time::Duration;

use checkpoint::{Epoch, backup::Standing, primary::Ending};

use super::{Cluster, Role};
use crate::simulation::{
    arbiter_host::restartable,
    backup::BackupShell,
    guest::Guest,
    happening::{Happening, ProcessId, WorldHappening},
    network::Side,
    primary::{Claim, ClaimEnd, Kept, PrimaryShell, Promoted},
};

impl Cluster {
    /// Everything begins: the first node is told to run the guest, the others
    /// to stand by.
    pub(super) fn found(&mut self) {
        self.arbiter.start(&mut self.world);
        for host in 0..=self.world.plan.backups {
            // Now and then an operator starts two nodes with `run`.
            let rival = host == 1 && self.world.chance.hits(100);
            self.begin(host as u8, host == 0 || rival);
        }
        for client in 0..self.world.plan.shape.clients {
            let delay = self.world.chance.micros(0..5_000);
            self.world.later(delay, WorldHappening::ClientAsks(client as u8));
        }
        for index in 0..self.world.plan.faults.len() {
            self.plan_fault(index);
        }
        self.world.later(self.world.plan.faulty, WorldHappening::Heal);
    }

    /// A new process, with `run` or with `backup`.
    pub(super) fn begin(&mut self, host: u8, run: bool) {
        let process = self.new_life(host);
        let role = if run {
            Role::Claiming(Box::new(Claim::start(&mut self.world, process)))
        } else {
            Role::Backup(Box::new(BackupShell::start(&mut self.world, process)))
        };
        self.processes[usize::from(host)].role = role;
    }

    fn new_life(&mut self, host: u8) -> ProcessId {
        let place = usize::from(host);
        let machine = &mut self.world.machines[place];
        machine.life += 1;
        machine.alive = true;
        machine.frozen_since = None;
        machine.has_guest = false;
        let life = machine.life;
        let process = &mut self.processes[place];
        process.held.clear();
        (process.turning, process.look_after_at) = (false, Duration::ZERO);
        ProcessId { host, life }
    }

    pub(super) fn process(&self, host: u8) -> ProcessId {
        ProcessId { host, life: self.world.machines[usize::from(host)].life }
    }

    /// A process that died is started again, as what an operator thinks right.
    pub(super) fn start(&mut self, host: u8) {
        let machine = &self.world.machines[usize::from(host)];
        if machine.alive || machine.twin {
            return;
        }
        let id = machine.id.clone();
        let register = self.arbiter.register();
        let its = match register {
            Some(register) => restartable(&register, &id),
            None => self.world.arbiter_up && host == 0,
        };
        let mistaken = self.world.faulty && self.world.chance.hits(50);
        // Nobody is started with `run` where the name is in use.
        let in_use = (0..self.processes.len()).any(|place| {
            let twin = place != usize::from(host) && self.world.machines[place].id == id;
            twin && self.world.machines[place].alive
        });
        self.begin(host, its != mistaken && !in_use);
    }

    /// A process ends at once; what was on its way from it may arrive.
    pub(super) fn kill(&mut self, host: u8) {
        let place = usize::from(host);
        let process = self.process(host);
        if !std::mem::replace(&mut self.world.machines[place].alive, false) {
            return;
        }
        if self.world.namesakes.is_some_and(|[_, second]| second == host) {
            // Nobody starts it again there.
            self.world.moved = false;
        }
        self.world.machines[place].frozen_since = None;
        self.processes[place].role = Role::Down;
        self.processes[place].held.clear();
        self.world.witness.gives_up(process);
        self.orphan_sessions(process);
        self.give_up_if_lost();
    }

    fn orphan_sessions(&mut self, process: ProcessId) {
        for id in self.world.network.live() {
            for side in [Side::Primary, Side::Backup] {
                if self.world.network.session(id).process(side) == Some(process) {
                    self.world.orphan(id, side);
                }
            }
        }
    }

    /// A primary that has handed its guest over stands by with it. It is the same
    /// process; a new number for it keeps what was planned for its former role
    /// away from the new one.
    fn stand_by(&mut self, before: ProcessId, kept: Kept) {
        self.orphan_sessions(before);
        let after = self.new_life(before.host);
        let number = self.world.witness.becomes(before, after);
        let shell = BackupShell::with_image(&mut self.world, after, kept, number);
        self.processes[usize::from(before.host)].role = Role::Backup(Box::new(shell));
    }

    /// Ends a process that will be started again.
    pub(super) fn kill_and_restart(&mut self, host: u8, within: std::ops::Range<u64>) {
        self.kill(host);
        let delay = self.world.chance.micros(within);
        self.world.later(delay, WorldHappening::Start(host));
    }

    // --- Roles ------------------------------------------------------------

    /// Plans what follows from what has just happened to a process.
    pub(super) fn turn(&mut self, host: u8) {
        let place = usize::from(host);
        let process = self.process(host);
        if self.processes[place].turning {
            return;
        }
        let delay = match &self.processes[place].role {
            Role::Primary(shell) => match shell.ending() {
                None => return,
                // Its last messages are waited for, a little.
                Some(Ending::HandedOver { .. } | Ending::Finished { .. }) => 1_000..30_000,
                Some(Ending::Fenced { .. }) => 10..100,
            },
            Role::Backup(shell) if shell.is_promoted() => 50..3_000,
            Role::Backup(_) | Role::Claiming(_) | Role::Down => return,
        };
        self.processes[place].turning = true;
        self.world.work_later(process, delay, Happening::NextRole);
    }

    /// The process ends, or goes on as something else.
    pub(super) fn next_role(&mut self, process: ProcessId) {
        let place = usize::from(process.host);
        match std::mem::replace(&mut self.processes[place].role, Role::Down) {
            Role::Backup(shell) => {
                self.processes[place].turning = false;
                match shell.into_guest(&mut self.world) {
                    Some(taken) => {
                        let shell = PrimaryShell::start(
                            &mut self.world,
                            process,
                            taken.guest,
                            taken.promoted,
                        );
                        self.processes[place].role = Role::Primary(Box::new(shell));
                    }
                    None => self.kill_and_restart(process.host, 1_000..20_000),
                }
            }
            Role::Primary(shell) if shell.keeps_guest() => {
                let kept = shell.into_kept(&self.world);
                self.stand_by(process, kept);
            }
            Role::Primary(shell) => {
                let at_once = matches!(shell.ending(), Some(Ending::HandedOver { .. }))
                    && !shell.is_stopping();
                let within = if at_once { 100..1_000 } else { 5_000..100_000 };
                self.kill_and_restart(process.host, within);
            }
            other @ (Role::Claiming(_) | Role::Down) => self.processes[place].role = other,
        }
    }

    pub(super) fn claimed(&mut self, process: ProcessId, end: Option<ClaimEnd>) {
        match end {
            None => self.start_twin(process),
            Some(ClaimEnd::Denied) => self.kill_and_restart(process.host, 1_000..20_000),
            Some(ClaimEnd::Granted(register)) => {
                let id = self.world.machine(process).id.clone();
                self.world.witness.boots(self.world.now, process, &id);
                self.world.report.reboots += u64::from(register.term > arbiter::Term::FIRST);
                self.clients.forget();
                let random = self.world.chance.number();
                let guest = Guest::boot(&self.world.plan.shape, random);
                let promoted = Promoted { register, first: Epoch::FIRST, outputs: Vec::new() };
                let shell = PrimaryShell::start(&mut self.world, process, guest, promoted);
                self.processes[usize::from(process.host)].role = Role::Primary(Box::new(shell));
            }
        }
    }

    /// An operator starts the same thing elsewhere, at the same moment.
    fn start_twin(&mut self, process: ProcessId) {
        let Some(host) = self.world.twin_of(process.host) else { return };
        if process.host != 0 || self.world.machines[host].alive {
            return;
        }
        let Role::Claiming(claim) = &self.processes[0].role else { return };
        let rate = self.world.plan.rates.twin;
        if !claim.has_read() || !self.world.faulty || !self.world.chance.hits(rate) {
            return;
        }
        let twin_process = ProcessId { host: host as u8, life: self.world.machines[host].life + 1 };
        let Some(twin) = claim.twin(&mut self.world, twin_process) else { return };
        self.new_life(host as u8);
        self.processes[host].role = Role::Claiming(Box::new(twin));
    }

    // --- Standing still ---------------------------------------------------

    /// A process stands still for a while.
    pub(super) fn freeze(&mut self, process: ProcessId, length: Duration) {
        let place = usize::from(process.host);
        let now = self.world.now;
        let machine = &mut self.world.machines[place];
        if !machine.alive || machine.life != process.life || machine.frozen_since.is_some() {
            return;
        }
        machine.frozen_since = Some(now);
        self.world.journal.line(
            format_args!("host {}", process.host),
            format_args!("stands still for {} ms", length.as_millis()),
        );
        self.world.later(length, WorldHappening::Thaw(process));
        for id in self.world.network.live() {
            let session = self.world.network.session(id);
            let ends = [Side::Primary, Side::Backup].map(|side| session.process(side));
            if ends.contains(&Some(process)) {
                let idle = self.world.plan.timing.idle_timeout;
                self.world.later(idle, WorldHappening::IdleCheck(id));
            }
        }
    }

    pub(super) fn freeze_who_is_to(&mut self) {
        while let Some(process) = self.world.freezing.pop() {
            let length = self.world.chance.micros_of_any_size(1_000..700_000);
            self.freeze(process, length);
        }
    }

    /// It goes on: what has happened meanwhile happens now, timers perhaps last.
    pub(super) fn thaw(&mut self, process: ProcessId) {
        let place = usize::from(process.host);
        if !self.world.is_alive(process) || self.world.machines[place].frozen_since.is_none() {
            return;
        }
        self.world.machines[place].frozen_since = None;
        let held = std::mem::take(&mut self.processes[place].held);
        let timers_last = self.world.chance.hits(500);
        let is_timer = |happening: &WorldHappening| {
            matches!(happening, WorldHappening::Process(_, Happening::Wake))
        };
        let (timers, others): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|happening| timers_last && is_timer(happening));
        let mut delay = Duration::ZERO;
        for happening in others.into_iter().chain(timers) {
            delay += self.world.chance.micros(1..30);
            self.world.later(delay, happening);
        }
    }

    // --- What can go on ---------------------------------------------------

    /// Whether a process could run the guest: it does, or has all of it.
    pub(super) fn could_run(&self, host: usize) -> bool {
        match &self.processes[host].role {
            Role::Primary(shell) => shell.ending().is_none() || shell.keeps_guest(),
            Role::Backup(shell) => match shell.standing() {
                Standing::Whole | Standing::Asking | Standing::Promoting => true,
                Standing::Waiting | Standing::Seeding => false,
            },
            Role::Claiming(_) | Role::Down => false,
        }
    }

    /// With the last copy of the guest gone there is nothing more to see.
    pub(super) fn give_up_if_lost(&mut self) {
        let Some(register) = self.arbiter.register() else { return };
        if register.in_sync.is_empty() {
            // Whoever is named may boot it afresh.
            return;
        }
        let named = |host: usize| {
            let id = &self.world.machines[host].id;
            let counted = match &self.processes[host].role {
                // Two processes may have that name.
                Role::Backup(shell) => {
                    shell.image().is_some_and(|image| register.counts_on(id, image))
                }
                Role::Primary(_) | Role::Claiming(_) | Role::Down => {
                    register.in_sync.contains_key(id)
                }
            };
            *id == register.primary || counted
        };
        if !(0..self.processes.len()).any(|host| named(host) && self.could_run(host)) {
            self.world.journal.line("cluster", format_args!("the guest is lost: {register}"));
            self.world.report.lost = 1;
            self.over = true;
        }
    }
}
