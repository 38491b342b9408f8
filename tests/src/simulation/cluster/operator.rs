//! The operator: at bad moments while things go wrong, and with care afterwards.

use std::time::Duration;

use checkpoint::{backup::Standing, primary::Command};

use super::{Cluster, HEALED_WITHIN, Role};
use crate::simulation::{arbiter_host::restartable, happening::WorldHappening, witness::Rule};

/// Between two times that protection is asked for: a primary that is about to
/// hand over takes no notice.
const PROTECT_AGAIN: Duration = Duration::from_millis(200);
/// Between two looks, in microseconds.
const LOOK: std::ops::Range<u64> = 10_000..10_001;

impl Cluster {
    /// Some command, to a process of a host.
    pub(super) fn operator_acts(&mut self, host: usize) {
        let what = self.world.chance.below(12);
        let others: Vec<_> = self.world.peers_of(self.process(host as u8));
        let other = others[self.world.chance.index(others.len())].clone();
        let world = &mut self.world;
        match &mut self.processes[host].role {
            Role::Primary(shell) => {
                let command = match what {
                    0..=2 => Command::Protect { backup: other },
                    3..=5 => Command::Unprotect { backup: other },
                    6..=8 => Command::HandOver { to: other, stand_by: true },
                    9..=10 => Command::Verify,
                    _ => {
                        world.journal.line("operator", format_args!("stops host {host}"));
                        shell.stop(world);
                        return self.turn(host as u8);
                    }
                };
                world.journal.line("operator", format_args!("to host {host}: {command:?}"));
                shell.command(world, command);
                self.turn(host as u8);
            }
            Role::Backup(shell) if what < 6 => {
                // As the control API lets it through.
                if shell.standing() == Standing::Whole {
                    world.journal.line("operator", format_args!("host {host} is to take over"));
                    shell.take_over(world);
                    self.turn(host as u8);
                }
            }
            Role::Backup(shell) if what < 8 && !shell.is_promoted() => {
                world.journal.line("operator", format_args!("stops the backup on host {host}"));
                self.kill_and_restart(host as u8, 5_000..100_000);
            }
            Role::Backup(_) | Role::Claiming(_) | Role::Down => {}
        }
    }

    /// After the faults: what is left to do for an operator, and whether all is
    /// well again.
    pub(super) fn operator_looks(&mut self) {
        self.give_up_if_lost();
        if self.is_well() {
            self.world.report.protected = 1;
            self.over = true;
            return;
        }
        let (now, faulty) = (self.world.now, self.world.plan.faulty);
        if now > faulty + HEALED_WITHIN {
            let register = self.arbiter.register();
            let roles: Vec<_> = (0..self.processes.len()).map(|host| self.role(host)).collect();
            self.world.witness.object(Rule::Liveness, || {
                format!("not protected {HEALED_WITHIN:?} after the faults: {register:?}, {roles:?}")
            });
            return;
        }
        self.run_who_should();
        self.protect_again();
        let delay = self.world.chance.micros(LOOK);
        self.world.later(delay, WorldHappening::OperatorLooks);
    }

    /// Every other node is in sync, and clients are served.
    fn is_well(&self) -> bool {
        let Some(register) = self.arbiter.register() else { return false };
        let all = register.in_sync.len() >= self.world.plan.backups;
        let runs = self.processes.iter().zip(&self.world.machines).any(|(process, machine)| {
            let Role::Primary(shell) = &process.role else { return false };
            machine.id == register.primary && *shell.register() == register
        });
        all && runs && self.clients.are_served_since(self.world.plan.faulty)
    }

    fn role(&self, host: usize) -> String {
        match &self.processes[host].role {
            Role::Down => "down".to_owned(),
            Role::Claiming(_) => "claiming".to_owned(),
            Role::Primary(shell) => format!("primary of {}", shell.register()),
            Role::Backup(shell) => format!("backup, {:?}", shell.standing()),
        }
    }

    /// A node that the register names and that has no guest is started with
    /// `run`: its guest is lost, and boots afresh.
    fn run_who_should(&mut self) {
        if !self.world.arbiter_up {
            return;
        }
        let register = self.arbiter.register();
        let named = |host: &usize| match &register {
            Some(register) => restartable(register, &self.world.machines[*host].id),
            // Nobody has ever claimed it.
            None => *host == 0,
        };
        let hosts: Vec<usize> = (0..self.processes.len()).filter(named).collect();
        let busy = |host: &usize| {
            let claiming = matches!(self.processes[*host].role, Role::Claiming(_));
            let ending = matches!(self.processes[*host].role, Role::Primary(_));
            claiming || ending || self.could_run(*host)
        };
        if hosts.iter().any(busy) {
            return;
        }
        let Some((host, twins)) = hosts.split_first() else { return };
        // Two of one name: only one of them may be started with `run`.
        for twin in twins {
            self.kill(*twin as u8);
        }
        if self.world.machines[*host].alive {
            self.kill_and_restart(*host as u8, 500..2_000);
        }
    }

    /// What an operator took away is given back.
    fn protect_again(&mut self) {
        for host in 0..self.processes.len() {
            let peers = self.world.peers_of(self.process(host as u8));
            let process = &mut self.processes[host];
            let Role::Primary(shell) = &mut process.role else { continue };
            if process.look_after_at > self.world.now {
                continue;
            }
            process.look_after_at = self.world.now + PROTECT_AGAIN;
            for backup in peers {
                shell.command(&mut self.world, Command::Protect { backup });
            }
            self.turn(host as u8);
        }
    }
}
