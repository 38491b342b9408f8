//! The backup's machine and the loop that carries out its actions.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use arbiter::{NodeId, Register, Term};
use checkpoint::{
    Answer, Epoch,
    backup::{Action, Backup, Config, Event},
    chunk::{ChunkId, Digest},
    image::{BrokenImage, Image},
    message::{Refusal, ToBackup},
};
use rand::Rng;
use transport::Knock;

use super::{
    applier::Applier,
    decoder::{Arrivals, Decoders},
    session::{Session, keep_door},
    staging::SharedStaging,
};
use crate::{
    control::{ControlRequest, EventKind, Severity},
    node::{
        ArbiterView, ArbiterWatch, Asker, Guest, Host, NodeError, Requests, Sight, Unhandled,
        record_note,
    },
    primary::Promoted,
};

/// How often the core looks up although nothing happens.
const LOOK: Duration = Duration::from_millis(100);

/// Everything that the core is told.
#[derive(Debug)]
pub(crate) enum Input {
    Knock(Box<Knock>),
    LinkDown {
        session: u64,
    },
    Heard {
        session: u64,
        term: Term,
        message: ToBackup,
        unhandled: Unhandled,
    },
    Staged {
        session: u64,
        term: Term,
        id: ChunkId,
        digest: Digest,
        pages: u64,
        unhandled: Unhandled,
    },
    Refused {
        session: u64,
        id: ChunkId,
        unhandled: Unhandled,
    },
    PassedOver {
        session: u64,
        id: ChunkId,
        unhandled: Unhandled,
    },
    /// More was sent than may be staged.
    Excess {
        session: u64,
        unhandled: Unhandled,
    },
    Applied {
        epoch: Epoch,
    },
    ImageBroken(BrokenImage),
    ImageDigest {
        epoch: Epoch,
        digest: Digest,
    },
    Answered(Answer),
    /// What was seen of the arbiter, from time to time.
    ArbiterSeen(Sight),
    Control(ControlRequest),
}

/// How standing by ended.
pub enum End {
    /// An operator stopped it.
    Stopped,
    /// The guest stands paused at its last committed epoch, and is this node's.
    Promoted(Box<Host>, Box<Guest>, Promoted),
}

/// An image that is there from the start, in guest memory and here.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) image: Image,
    pub(super) epoch: Epoch,
    pub(super) register: Register,
}

/// The core. Fields are visible to the status that is made of them.
pub(super) struct Core {
    pub(super) host: Host,
    pub(super) guest: Arc<Guest>,
    pub(super) machine: Backup,
    pub(super) arbiter: ArbiterView,
    pub(super) stop: bool,
    staging: Arc<SharedStaging>,
    applier: Applier,
    decoders: Decoders,
    arrivals: Arrivals,
    session: Option<Session>,
    sessions: u64,
    knock: Option<Knock>,
    door: tokio::task::JoinHandle<()>,
    requests: Requests,
    asker: Asker,
    watch: ArbiterWatch,
    inputs: mpsc::Sender<Input>,
    promotion: Option<(Register, Epoch)>,
}

/// Stands by until stopped or promoted.
///
/// # Errors
///
/// [`NodeError`], if threads cannot be started or the guest's state cannot be
/// set.
pub(super) fn stand_by(
    host: Host,
    guest: Guest,
    standing: Option<Standing>,
) -> Result<End, NodeError> {
    let (inputs, received) = mpsc::channel();
    let mut core = Core::new(host, guest, standing, inputs)?;
    core.work(&received);
    match core.promotion.take() {
        Some((register, epoch)) => core.promote(register, epoch),
        None => {
            let Core { host, .. } = core;
            host.finish();
            Ok(End::Stopped)
        }
    }
}

impl Core {
    fn new(
        mut host: Host,
        guest: Guest,
        standing: Option<Standing>,
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self, NodeError> {
        let guest = Arc::new(guest);
        let replication = &host.config.replication;
        let staging_bytes_max = u64::from(replication.staging_mib_max.get()) << 20;
        let staging = Arc::new(SharedStaging::new(staging_bytes_max as usize));
        let threads = replication.encode_threads.get();
        let (decoders, arrivals) = Decoders::start(threads, &guest.layout(), &staging, &inputs)
            .map_err(NodeError::Thread)?;
        let config = machine_config(&host.config, &guest, staging_bytes_max);
        let (random, now) = (rand::rng().next_u64(), host.clock.at(Instant::now()));
        let (machine, image) = match standing {
            None => (Backup::new(config, Term::ZERO, random, now), Image::default()),
            Some(Standing { image, epoch, register }) => {
                (Backup::with_image(config, register, epoch, random, now), image)
            }
        };
        let applier = Applier::start(
            image,
            guest.clone(),
            staging.clone(),
            host.telemetry.clone(),
            inputs.clone(),
        )
        .map_err(NodeError::Thread)?;
        let handle = host.runtime.handle().clone();
        let door = handle.spawn(keep_door(host.endpoint.clone(), inputs.clone()));
        let to_core = inputs.clone();
        let requests = Requests::pass(&mut host, move |request| {
            let _ = to_core.send(Input::Control(request));
        });
        let asker = Asker::new(&host);
        let seen = inputs.clone();
        let watch = ArbiterWatch::start(&host, machine.term(), move |sight| {
            let _ = seen.send(Input::ArbiterSeen(sight));
        });
        Ok(Self {
            host,
            guest,
            machine,
            arbiter: ArbiterView::default(),
            stop: false,
            staging,
            applier,
            decoders,
            arrivals,
            session: None,
            sessions: 0,
            knock: None,
            door,
            requests,
            asker,
            watch,
            inputs,
            promotion: None,
        })
    }

    fn work(&mut self, inputs: &mpsc::Receiver<Input>) {
        while !self.stop && self.promotion.is_none() {
            let now = self.host.clock.at(Instant::now());
            let due = self.machine.poll_timeout().map(|due| due.saturating_sub(now));
            match inputs.recv_timeout(due.unwrap_or(LOOK).min(LOOK)) {
                Ok(input) => self.take(input),
                Err(mpsc::RecvTimeoutError::Timeout) => self.tell(Event::Timeout),
                Err(mpsc::RecvTimeoutError::Disconnected) => unreachable!("we hold a sender"),
            }
            self.act();
            self.gauge();
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        let now = self.host.clock.at(Instant::now());
        self.machine.handle(now, event);
        self.watch.knows(self.machine.term());
    }

    /// Whether the configuration names `node`: a certificate of the cluster is
    /// not enough to replace a VM's image.
    fn is_peer(&self, node: &NodeId) -> bool {
        self.host.config.peers.iter().any(|peer| peer.name == *node)
    }

    /// Whether `session` is the one that was taken last.
    fn current(&self, session: u64) -> bool {
        self.session.as_ref().is_some_and(|current| current.number == session)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Knock(knock) if !self.is_peer(&knock.peer) => {
                let reason = format!("`{}` is none of this node's [[peers]]", knock.peer);
                if self.host.telemetry.events.is_due(EventKind::PeerRefused, Some(&knock.peer)) {
                    tracing::warn!(peer = %knock.peer, "a node that is no peer was turned away");
                }
                let refusal = Refusal::Unready { reason };
                self.host.runtime.spawn(knock.refuse(self.machine.term(), refusal));
            }
            Input::Knock(knock) => {
                let (peer, term, hello) = (knock.peer.clone(), knock.term, knock.hello.clone());
                self.knock = Some(*knock);
                self.tell(Event::Knock { peer, term, hello });
            }
            Input::LinkDown { session } if self.current(session) => {
                self.session = None;
                self.tell(Event::LinkDown);
            }
            Input::Heard { session, term, message, unhandled } if self.current(session) => {
                self.tell(Event::Heard { term, message });
                drop(unhandled);
            }
            Input::Staged { session, term, id, digest, pages, unhandled }
                if self.current(session) =>
            {
                self.tell(Event::Staged { term, id, digest, pages });
                drop(unhandled);
            }
            Input::Refused { session, id, unhandled } if self.current(session) => {
                self.tell(Event::Refused { id });
                drop(unhandled);
            }
            Input::PassedOver { session, id, unhandled } if self.current(session) => {
                self.tell(Event::PassedOver { id });
                drop(unhandled);
            }
            Input::Excess { session, unhandled } if self.current(session) => {
                self.tell(Event::Excess);
                drop(unhandled);
            }
            // Of a session that is over.
            Input::LinkDown { .. }
            | Input::Heard { .. }
            | Input::Staged { .. }
            | Input::Refused { .. }
            | Input::PassedOver { .. }
            | Input::Excess { .. } => {}
            Input::Applied { epoch } => self.tell(Event::Applied { epoch }),
            Input::ImageBroken(broken) => {
                let why = broken.to_string();
                self.tell(Event::ImageBroken { why });
            }
            Input::ImageDigest { epoch, digest } => {
                self.tell(Event::ImageDigest { epoch, digest });
            }
            Input::Answered(answer) => {
                self.arbiter.on_answer(&answer);
                self.tell(Event::Answered(answer));
            }
            Input::ArbiterSeen(sight) => self.arbiter.on_sight(sight),
            Input::Control(request) => self.on_control(request),
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Welcome(welcome) => {
                let knock = self.knock.take().expect("somebody knocked");
                self.sessions += 1;
                self.staging.begin(self.sessions);
                self.applier.give_up_digest();
                let _entered = self.host.runtime.enter();
                match knock.welcome(self.machine.term(), welcome) {
                    Ok(session) => {
                        let (arrivals, inputs) = (self.arrivals.clone(), self.inputs.clone());
                        let handle = self.host.runtime.handle();
                        let session =
                            Session::start(self.sessions, session, handle, arrivals, inputs);
                        self.session = Some(session);
                    }
                    Err(error) => tracing::warn!(%error, "a session could not be taken"),
                }
            }
            Action::Refuse(refusal) => {
                let knock = self.knock.take().expect("somebody knocked");
                self.host.runtime.spawn(knock.refuse(self.machine.term(), refusal));
            }
            Action::Disconnect { reason } => {
                if let Some(session) = self.session.take() {
                    session.close(&reason);
                }
            }
            Action::Floor(term) => {
                if let Some(session) = &self.session {
                    session.raise(term);
                }
            }
            Action::Send(message) => {
                if let Some(session) = &self.session {
                    session.send(self.machine.term(), message);
                }
            }
            Action::Discard => {
                self.staging.discard();
                self.applier.forget();
            }
            Action::ApplySeed { chunks } => self.applier.seed(self.staging.take_seed(chunks)),
            Action::Unstage { epoch } => self.staging.unstage(epoch),
            Action::Apply { epoch } => {
                self.host.telemetry.metrics.epochs.inc();
                self.applier.epoch(epoch, self.staging.take(epoch));
            }
            Action::DigestImage { epoch } => self.applier.digest(epoch),
            Action::Ask(question) => {
                let inputs = self.inputs.clone();
                self.asker.ask(question, move |answer| {
                    let _ = inputs.send(Input::Answered(answer));
                });
            }
            Action::Promote { register, epoch } => self.promotion = Some((register, epoch)),
            Action::Note(note) if self.arbiter.is_told(&note) => {}
            Action::Note(note) => record_note(&self.host.telemetry, &note),
        }
    }

    /// Finishes applying, sets the guest's state, and gives up standing by.
    fn promote(self, register: Register, epoch: Epoch) -> Result<End, NodeError> {
        let begun = Instant::now();
        let Self {
            mut host,
            guest,
            staging,
            applier,
            decoders,
            arrivals,
            session,
            door,
            requests,
            ..
        } = self;
        if let Some(session) = session {
            session.close("this node takes over");
        }
        door.abort();
        // Decoders that wait for room find that their session is over.
        staging.begin(u64::MAX);
        let image = applier.finish()?;
        let applied = begun.elapsed();
        if host.audit.wanted() {
            host.audit.record("promoted", epoch, &guest.digest());
        }
        let followed = !register.in_sync.is_empty();
        guest.take_over(image.sections(), image.outputs().to_vec(), followed)?;
        host.telemetry.metrics.promotion.record(begun.elapsed());
        let (applied_us, total_us) =
            (applied.as_micros() as u64, begun.elapsed().as_micros() as u64);
        host.telemetry.events.record(
            Severity::Info,
            EventKind::GuestRestored,
            format!("the guest's state at epoch {epoch} is set"),
            serde_json::json!({ "epoch": epoch.get(), "applied_us": applied_us, "total_us": total_us }),
        );
        drop(arrivals);
        requests.give_back(&mut host);
        host.runtime.spawn_blocking(move || decoders.join());
        let guest = Arc::into_inner(guest).expect("the applier has ended");
        let promoted = Promoted { register, first: epoch.next() };
        Ok(End::Promoted(Box::new(host), Box::new(guest), promoted))
    }
}

fn machine_config(
    config: &crate::config::VmConfig,
    guest: &Guest,
    staging_bytes_max: u64,
) -> Config {
    let replication = &config.replication;
    let node: NodeId = config.node.name.clone();
    Config {
        node,
        vm: config.vm.name.clone(),
        machine: guest.machine(),
        versions: transport::wire::VERSIONS.iter().map(|v| (*v).to_owned()).collect(),
        detection: replication.detection,
        freeze_gap: replication.drop.min(replication.detection) / 2,
        ask_retry: Duration::from_millis(100),
        nack_after: Duration::from_millis(200),
        staging_bytes_max,
    }
}
