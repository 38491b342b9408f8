//! The primary's machine and the loop that carries out its actions.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use arbiter::{NodeId, Register, Term};
use checkpoint::{
    Answer, Epoch, Note,
    history::History,
    message::{HeldImage, Hello, Refusal, ToPrimary},
    primary::{Action, Command, Config, Ending, Event, Primary},
};
use rand::Rng;

use super::{
    capture::BlockPool,
    copier::{self, Copier},
    cutter::{self, Cut, Cutter, Still},
    encoder::Encoders,
    flights::{Complete, Flights, Lesson},
    guest_events::RecentFaults,
    peers::{self, Peers, SharedTerm},
    seeder::{self, Seed},
    status::Verification,
    tracker::Tracker,
    troubles::Troubles,
};
use crate::{
    backup::KeptGuest,
    config::Replication,
    control::{Accepted, ControlRequest, Reply},
    exit::Exit,
    node::{
        ArbiterView, ArbiterWatch, Asker, Guest, GuestEvent, Host, NodeError, Requests, Sight,
        Unhandled,
        crash_point::{self, Moment},
        record_note,
    },
};

/// Pages that a seed may leave to the checkpoint that ends it.
const SEED_PAGES_LEFT_MAX: u64 = 4096;
const SEED_ROUNDS_MAX: u32 = 8;
/// How long the end of a handover may take.
const LET_GO_MAX: Duration = Duration::from_secs(10);
/// How often the core looks at how much output is held.
const LOOK: Duration = Duration::from_millis(5);

/// Everything that the core is told.
#[derive(Debug)]
pub(crate) enum Input {
    CutDone(Cut),
    CutFailed {
        epoch: Epoch,
        why: String,
    },
    Encoded(Complete),
    LinkUp {
        backup: NodeId,
        image: Option<HeldImage>,
        staging_bytes_max: u64,
    },
    LinkRefused {
        backup: NodeId,
        refusal: Refusal,
    },
    /// A backup that is dialled does not answer, for this reason.
    Unreachable {
        backup: NodeId,
        why: String,
    },
    LinkDown {
        backup: NodeId,
    },
    Heard {
        backup: NodeId,
        term: Term,
        message: ToPrimary,
        unhandled: Unhandled,
    },
    SeedRoundSent {
        backup: NodeId,
        chunks: u32,
        pages_left: u64,
    },
    Answered(Answer),
    /// What was seen of the arbiter, from time to time.
    ArbiterSeen(Sight),
    Control(ControlRequest),
    /// Something happened to the guest.
    Guest(GuestEvent),
    /// The guest has begun anew; if not, it stays paused.
    Restarted(Result<(), String>),
    /// The VM cannot be paused or resumed any more.
    GuestLost(String),
    /// The outlet found a release too old.
    StaleRelease,
    /// The first packet of the epoch that runs is held.
    OutputWaits,
}

/// The right to run, and where the guest is.
#[derive(Debug)]
pub struct Promoted {
    /// What the register holds.
    pub register: Register,
    /// The epoch that the guest is in.
    pub first: Epoch,
}

/// How a primary's work ended.
#[derive(Debug)]
pub enum Ended {
    /// The process is to end.
    Exit(Exit),
    /// Another node took over by plan; the guest is kept, if it is counted on.
    HandedOver(Box<Host>, Option<KeptGuest>),
}

/// How a primary's core ended.
#[derive(Debug)]
enum End {
    /// The guest has ended, or was stopped by its operator.
    Finished {
        /// Whether the guest, or its VM, failed.
        failed: bool,
    },
    /// This node lost the right to run.
    Fenced,
    /// Another node took over by plan; this is how the guest stands, if the
    /// register counts on it.
    HandedOver(Option<(Still, Register)>),
}

/// A cut that is not committed.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) epoch: Epoch,
    /// When the guest went on.
    pub(super) since: Instant,
    /// What its commit will teach; known when it is encoded.
    lesson: Option<Lesson>,
}

/// The core. Fields are visible to the status that is made of them.
pub(super) struct Core {
    pub(super) host: Host,
    pub(super) guest: Arc<Guest>,
    pub(super) machine: Primary,
    pub(super) term: SharedTerm,
    pub(super) peers: Peers,
    pub(super) addresses: BTreeMap<NodeId, std::net::SocketAddr>,
    pub(super) flights: Arc<Flights>,
    pub(super) seeds: BTreeMap<NodeId, Seed>,
    pub(super) arbiter: ArbiterView,
    pub(super) guest_held: bool,
    /// Cuts that are not committed.
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) verification: Verification,
    /// Why backups have no session.
    pub(super) troubles: Troubles,
    /// Triple faults that were followed by a restart.
    pub(super) faults: RecentFaults,
    tracker: Arc<Tracker>,
    pool: BlockPool,
    pub(super) cutter: Cutter,
    pub(super) copier: Option<Arc<Copier>>,
    _encoders: Encoders,
    asker: Asker,
    requests: Requests,
    watch: ArbiterWatch,
    inputs: mpsc::Sender<Input>,
    /// When the event that is being handled was received.
    pub(super) received: Instant,
    failed: bool,
    pub(super) cuts_failed: u32,
    /// Why this host cannot run the guest, which its backups can.
    pub(super) host_failure: Option<String>,
    held_bytes: u64,
    /// Pieces of output that had left when the figures were last updated.
    pub(super) released_frames: u64,
    ending: Option<Ending>,
    /// A signal asked for the end: the process does not go on as a backup.
    pub(super) stopping: bool,
    /// Who waits for the end of a handover.
    pub(super) handover: Option<Reply<Accepted>>,
    beat: super::status::Beat,
}

/// Runs the guest, which is ready to run, as its primary.
///
/// # Errors
///
/// [`NodeError::Thread`] if its threads could not be started.
pub fn run_core(host: Host, guest: Guest, promoted: Promoted) -> Result<Ended, NodeError> {
    let (inputs, received) = mpsc::channel();
    let mut core = Core::new(host, guest, promoted, inputs)?;
    core.protect_all();
    core.guest.vm().resume().map_err(crate::node::GuestError::from)?;
    core.record_start();
    let end = core.work(&received);
    let _ = core.cutter.stop();
    let (mut host, guest, requests) = core.part();
    let exit = match end {
        End::Finished { failed: false } => Exit::Done,
        End::Finished { failed: true } => Exit::Failed,
        End::Fenced => Exit::Fenced,
        End::HandedOver(still) => {
            let guest = let_go(guest);
            requests.give_back(&mut host);
            host.telemetry.metrics.stand_by();
            // Whom nobody counts on makes its VM anew.
            let kept = guest.zip(still).map(|(guest, (Still { epoch, sections }, register))| {
                KeptGuest { guest: Box::new(guest), sections, epoch, register }
            });
            return Ok(Ended::HandedOver(Box::new(host), kept));
        }
    };
    drop(guest);
    host.finish();
    Ok(Ended::Exit(exit))
}

/// Waits until nobody else has the guest any more, and returns it then. A seed may
/// hold it until its session has ended.
fn let_go(mut guest: Arc<Guest>) -> Option<Guest> {
    let deadline = Instant::now() + LET_GO_MAX;
    loop {
        match Arc::try_unwrap(guest) {
            Ok(guest) => return Some(guest),
            Err(shared) if Instant::now() < deadline => guest = shared,
            Err(_) => {
                tracing::warn!("something holds the old guest: this host has its memory twice");
                return None;
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

impl Core {
    fn new(
        mut host: Host,
        guest: Guest,
        promoted: Promoted,
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self, NodeError> {
        let guest = Arc::new(guest);
        let replication = &host.config.replication;
        let pool = BlockPool::new((replication.in_flight_mib_max.get() as usize) << 20);
        // Whoever is in sync follows from the first write on.
        let followed = !promoted.register.in_sync.is_empty();
        if followed {
            crash_point::begin();
        }
        let tracker = Arc::new(Tracker::new(guest.clone(), followed));
        let flights = Arc::new(Flights::new(replication.compression.choice()));
        let encoders = encoders(replication, &guest, &flights, &inputs)?;
        let copier = copier(&host, &guest, &pool, &encoders)?;
        let cutter = cutter(&host, &guest, &tracker, &pool, &encoders, copier.clone(), &inputs)?;
        let term = SharedTerm::default();
        term.set(promoted.register.term);
        let peers = dialers(&host, &guest, &term, &inputs);
        let requests = listen(&mut host, &guest, &inputs)?;
        let machine = machine(&host, promoted);
        let addresses =
            host.config.peers.iter().map(|peer| (peer.name.clone(), peer.address)).collect();
        let asker = Asker::new(&host);
        let seen = inputs.clone();
        let watch = ArbiterWatch::start(&host, term.get(), move |sight| {
            let _ = seen.send(Input::ArbiterSeen(sight));
        });
        Ok(Self {
            host,
            guest,
            machine,
            term,
            peers,
            addresses,
            flights,
            seeds: BTreeMap::new(),
            arbiter: ArbiterView::default(),
            guest_held: false,
            in_flight: VecDeque::new(),
            verification: Verification::default(),
            troubles: Troubles::default(),
            faults: RecentFaults::default(),
            tracker,
            pool,
            cutter,
            copier,
            _encoders: encoders,
            asker,
            requests,
            watch,
            inputs,
            received: Instant::now(),
            failed: false,
            cuts_failed: 0,
            host_failure: None,
            held_bytes: 0,
            released_frames: 0,
            ending: None,
            stopping: false,
            handover: None,
            beat: super::status::Beat::new(),
        })
    }

    /// Ends everything around the machine; what outlives it is given back.
    fn part(self) -> (Host, Arc<Guest>, Requests) {
        let Self { host, guest, requests, .. } = self;
        (host, guest, requests)
    }

    fn protect_all(&mut self) {
        for backup in self.addresses.keys().cloned().collect::<Vec<_>>() {
            self.command(Command::Protect { backup });
        }
    }

    fn work(&mut self, inputs: &mpsc::Receiver<Input>) -> End {
        loop {
            if let Some(end) = self.act() {
                return end;
            }
            let wait = self.wait();
            match inputs.recv_timeout(wait) {
                Ok(input) => {
                    self.received = Instant::now();
                    self.take(input);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.received = Instant::now();
                    self.tell(Event::Timeout);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => unreachable!("we hold a sender"),
            }
            if let Some(why) = self.host_failure.take() {
                self.leave_to_backups(&why);
                return End::Finished { failed: true };
            }
            self.look_at_outlet();
            if self.beat.due(self.received, super::status::GAUGE_INTERVAL) {
                self.gauge();
                self.stop_if_possible();
            }
        }
    }

    fn wait(&self) -> Duration {
        let now = self.host.clock.at(Instant::now());
        let due = self.machine.poll_timeout().map(|due| due.saturating_sub(now));
        let look = if self.guest_held { LOOK } else { 20 * LOOK };
        due.unwrap_or(look).min(look)
    }

    pub(super) fn tell(&mut self, event: Event) {
        let now = self.host.clock.at(self.received);
        self.machine.handle(now, event);
        let term = self.machine.register().term;
        self.term.set(term);
        self.watch.knows(term);
    }

    pub(super) fn command(&mut self, command: Command) {
        self.tell(Event::Commanded(command));
    }

    /// The guest is over: what it said is committed, then everybody stands down.
    pub(super) fn finish(&mut self, reason: String, failed: bool) {
        self.failed |= failed;
        self.command(Command::Finish { reason });
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::CutDone(cut) => self.on_cut_done(&cut),
            Input::CutFailed { epoch, why } => {
                self.on_cut_failed(&why);
                self.tell(Event::CutFailed { epoch, why });
            }
            Input::Encoded(Complete { close, wire_bytes, encode, lesson }) => {
                let metrics = &self.host.telemetry.metrics;
                metrics.record_wire(wire_bytes);
                self.host.telemetry.epochs.encoded(close.epoch.get(), wire_bytes);
                metrics.encode.record(encode);
                if let Some(cut) = self.in_flight.iter_mut().find(|cut| cut.epoch == close.epoch) {
                    cut.lesson = Some(lesson);
                }
                crash_point::reached(Moment::Closing);
                self.tell(Event::Encoded { close, wire_bytes });
                if self.act_while_running() {
                    crash_point::reached(Moment::Closed);
                }
            }
            Input::LinkUp { backup, image, staging_bytes_max } => {
                self.troubles.end(&backup);
                self.tell(Event::LinkUp { backup, image, staging_bytes_max });
            }
            Input::LinkRefused { backup, refusal } => self.on_link_refused(backup, refusal),
            Input::Unreachable { backup, why } => self.on_unreachable(&backup, why),
            Input::LinkDown { backup } => {
                self.flights.unfollow(&backup);
                self.verification.lost(&backup);
                self.tell(Event::LinkDown { backup });
            }
            Input::Heard { backup, term, message, unhandled } => {
                self.tell(Event::Heard { backup, term, message });
                drop(unhandled);
            }
            Input::SeedRoundSent { backup, chunks, pages_left } => {
                self.tell(Event::SeedRoundSent { backup, chunks, pages_left });
            }
            Input::Answered(answer) => {
                self.arbiter.on_answer(&answer);
                self.tell(Event::Answered(answer));
            }
            Input::ArbiterSeen(sight) => self.arbiter.on_sight(sight),
            Input::Control(request) => self.on_control(request),
            Input::Guest(event) => self.on_guest_event(event),
            Input::Restarted(result) => self.on_restarted(result),
            Input::GuestLost(why) => self.on_host_failure(why),
            Input::StaleRelease => self.tell(Event::Stalled),
            Input::OutputWaits => self.tell(Event::OutputWaits),
        }
    }

    fn on_cut_done(&mut self, cut: &Cut) {
        self.cuts_failed = 0;
        let metrics = &self.host.telemetry.metrics;
        metrics.pause.record(cut.timings.pause);
        metrics.harvest.record(cut.timings.harvest);
        metrics.save.record(cut.timings.save);
        metrics.capture.record(cut.timings.capture);
        self.host.telemetry.epochs.cut(cut.record());
        metrics.epochs.inc();
        metrics.dirty_pages.inc_by(cut.pages);
        metrics.pages_ahead.inc_by(cut.pages_early + cut.pages_ahead);
        self.in_flight.push_back(InFlight { epoch: cut.epoch, since: cut.resumed, lesson: None });
        if let Some(digest) = cut.digest {
            let report = self.verification.of_primary(cut.epoch, digest);
            self.record_verification(report);
        }
        let Cut { epoch, timings, .. } = *cut;
        self.tell(Event::CutDone { epoch, bytes: cut.bytes(), pause: timings.pause });
    }

    /// Tells the machine when the held output has changed much.
    fn look_at_outlet(&mut self) {
        let bytes = self.guest.outlet().stats().held_bytes as u64;
        self.host.telemetry.metrics.held.set(bytes as i64);
        let bound = u64::from(self.host.config.replication.held_output_mib_max.get()) << 20;
        if bytes.abs_diff(self.held_bytes) > bound / 16 || bytes == 0 && self.held_bytes > 0 {
            self.held_bytes = bytes;
            self.tell(Event::OutputHeld { bytes });
        }
    }

    /// Carries out actions; `false` if the end is among them, which stays for
    /// [`Core::act`].
    fn act_while_running(&mut self) -> bool {
        while self.ending.is_none()
            && let Some(action) = self.machine.poll_action()
        {
            match action {
                Action::End(ending) => self.ending = Some(ending),
                action => self.carry_out(action),
            }
        }
        self.ending.is_none()
    }

    fn act(&mut self) -> Option<End> {
        if self.act_while_running() {
            return None;
        }
        let ending = self.ending.take()?;
        Some(self.end(ending))
    }

    fn on_note(&mut self, note: &Note) {
        if !self.is_told(note) {
            record_note(&self.host.telemetry, note);
        }
        match note {
            Note::Admitted { .. } => crash_point::begin(),
            Note::HandOverAborted { .. } => self.on_handover_given_up(&note.to_string()),
            _ => {}
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Connect { backup } => {
                if let Some(address) = self.addresses.get(&backup) {
                    self.peers.connect(&backup, *address);
                }
                self.troubles.end(&backup);
            }
            Action::Disconnect { backup, redial } => self.disconnect(&backup, redial),
            Action::Send { backup, message } => self.peers.send(&backup, message),
            Action::StartSeed { backup } => self.start_seed(backup),
            Action::SeedRound { backup } => {
                if let Some(seed) = self.seeds.get(&backup) {
                    seed.round();
                }
            }
            Action::ResendSeed { backup, chunks } => {
                self.host.telemetry.metrics.chunks_resent.inc_by(chunks.len() as u64);
                if let Some(seed) = self.seeds.get(&backup) {
                    seed.resend(chunks);
                }
            }
            Action::StopSeed { backup } => {
                self.seeds.remove(&backup);
                self.cutter.end_seed(backup);
            }
            Action::Cut(order) => {
                for backup in &order.joins {
                    self.seeds.remove(backup);
                }
                self.cutter.cut(order);
            }
            Action::Follow { backup, after, joins } => {
                if let Some(outbox) = self.peers.outbox(&backup) {
                    self.flights.follow(backup, after, joins, outbox);
                }
            }
            Action::Resend { backup, epoch, chunks } => {
                self.host.telemetry.metrics.chunks_resent.inc_by(chunks.len() as u64);
                self.flights.resend(&backup, epoch, &chunks);
            }
            Action::Verified { backup, epoch, digest } => {
                let report = self.verification.of_backup(backup, epoch, digest);
                self.record_verification(report);
            }
            Action::Forget { through } => self.flights.forget(through),
            Action::Release { through } => self.release(through),
            Action::Confirm => self.guest.outlet().confirm(Instant::now()),
            Action::PassOutput => self.pass(),
            Action::HoldGuest => {
                self.guest_held = true;
                self.cutter.hold();
            }
            Action::FreeGuest => {
                self.guest_held = false;
                self.cutter.free();
            }
            Action::Ask(question) => {
                let inputs = self.inputs.clone();
                self.asker.ask(question, move |answer| {
                    let _ = inputs.send(Input::Answered(answer));
                });
            }
            Action::Note(note) => self.on_note(&note),
            Action::End(_) => unreachable!("taken before"),
        }
    }

    fn disconnect(&mut self, backup: &NodeId, redial: bool) {
        self.flights.unfollow(backup);
        self.verification.lost(backup);
        self.peers.disconnect(backup, redial);
        if !redial {
            self.troubles.end(backup);
        }
    }

    fn start_seed(&mut self, backup: NodeId) {
        let Some(sink) = self.peers.chunk_sink(&backup) else { return };
        let tools = seeder::Tools {
            guest: self.guest.clone(),
            tracker: self.tracker.clone(),
            pool: self.pool.clone(),
            sink,
            inputs: self.inputs.clone(),
            mib_per_s_max: self.host.config.replication.seed_mib_per_s_max,
            metrics: self.host.telemetry.metrics.clone(),
            codec: self.host.config.replication.compression,
        };
        match Seed::start(backup.clone(), tools) {
            Ok(seed) => {
                self.cutter.begin_seed(backup.clone(), seed.first_round());
                self.seeds.insert(backup, seed);
            }
            Err(error) => tracing::error!(%backup, %error, "the seed could not be begun"),
        }
    }

    fn release(&mut self, through: Epoch) {
        crash_point::reached(Moment::Committed);
        self.guest.outlet().release(through, self.received);
        crash_point::reached(Moment::Released);
        let metrics = &self.host.telemetry.metrics;
        while let Some(cut) = self.in_flight.pop_front_if(|cut| cut.epoch <= through) {
            let took = cut.since.elapsed();
            metrics.commit.record(took);
            self.host.telemetry.epochs.committed(cut.epoch.get(), took);
            if let Some(way) = cut.lesson.and_then(|lesson| self.flights.learn(lesson, took)) {
                tracing::info!(
                    ?way,
                    "pages are sent otherwise from now on, because that is faster"
                );
            }
        }
    }

    fn pass(&mut self) {
        self.guest.outlet().pass();
        self.in_flight.clear();
        self.flights.forget_all();
        self.cutter.rest();
    }

    fn end(&mut self, ending: Ending) -> End {
        match ending {
            Ending::Fenced { register } => {
                self.guest.outlet().fence();
                if let Some(copier) = &self.copier {
                    copier.abandon();
                }
                let _ = self.cutter.stop();
                self.answer_handover(Err("this node has lost the right to run the guest"));
                super::status::record_fence(&self.host.telemetry, register.as_ref());
                End::Fenced
            }
            Ending::HandedOver { register, epoch } => {
                self.guest.outlet().fence();
                let still = self.cutter.stop().filter(|still| still.epoch == epoch);
                self.peers.flush(&register.primary, Duration::from_secs(1));
                for other in register.in_sync.keys() {
                    self.peers.flush(other, Duration::from_millis(100));
                }
                self.answer_handover(Ok(&register));
                if self.stopping {
                    return End::Finished { failed: false };
                }
                let counted = register.in_sync.contains_key(&self.host.config.node.name);
                End::HandedOver(still.filter(|_| counted).map(|still| (still, register)))
            }
            Ending::Finished { reason } => {
                let _ = self.cutter.stop();
                self.answer_handover(Err("the guest has ended"));
                for backup in self.addresses.keys() {
                    self.peers.flush(backup, Duration::from_millis(200));
                }
                super::status::record_finish(&self.host.telemetry, &reason, self.failed);
                End::Finished { failed: self.failed }
            }
        }
    }
}

fn encoders(
    replication: &Replication,
    guest: &Guest,
    flights: &Arc<Flights>,
    inputs: &mpsc::Sender<Input>,
) -> Result<Encoders, NodeError> {
    let history_bytes = (replication.delta_cache_mib as usize) << 20;
    let history = History::new(guest.layout().frame_end(), history_bytes);
    let threads = replication.encode_threads.get();
    Encoders::start(threads, replication.compression, history, flights.clone(), inputs.clone())
        .map_err(NodeError::Thread)
}

/// Captures without copying in the pause, where the kernel can.
fn copier(
    host: &Host,
    guest: &Arc<Guest>,
    pool: &BlockPool,
    encoders: &Encoders,
) -> Result<Option<Arc<Copier>>, NodeError> {
    let guard = match guest.write_guard() {
        Ok(Some(guard)) => guard,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::info!(%error, "pages are not write-protected, but copied");
            return Ok(None);
        }
    };
    let tools = copier::Tools {
        guest: guest.clone(),
        guard,
        pool: pool.clone(),
        intake: encoders.intake(),
        metrics: host.telemetry.metrics.clone(),
    };
    let threads = host.config.replication.encode_threads.get();
    let copier = Copier::start(tools, threads);
    Ok(Some(Arc::new(copier.map_err(NodeError::Thread)?)))
}

/// Takes checkpoints and restarts the guest.
fn cutter(
    host: &Host,
    guest: &Arc<Guest>,
    tracker: &Arc<Tracker>,
    pool: &BlockPool,
    encoders: &Encoders,
    copier: Option<Arc<Copier>>,
    inputs: &mpsc::Sender<Input>,
) -> Result<Cutter, NodeError> {
    let replication = &host.config.replication;
    let cutter = Cutter::start(cutter::Tools {
        guest: guest.clone(),
        tracker: tracker.clone(),
        pool: pool.clone(),
        intake: encoders.intake(),
        copier,
        copy_max: replication.copy_max,
        interval: replication.pace.interval_longest(),
        send_outputs: replication.resend_outputs,
        audit: host.audit.clone(),
        config: host.config.clone(),
        inputs: inputs.clone(),
    });
    cutter.map_err(NodeError::Thread)
}

fn dialers(host: &Host, guest: &Guest, term: &SharedTerm, inputs: &mpsc::Sender<Input>) -> Peers {
    Peers::new(peers::Tools {
        handle: host.runtime.handle().clone(),
        endpoint: host.endpoint.clone(),
        hello: Hello {
            versions: transport::wire::VERSIONS.iter().map(|v| (*v).to_owned()).collect(),
            vm: host.config.vm.name.clone(),
            machine: guest.machine(),
        },
        term: term.clone(),
        inputs: inputs.clone(),
    })
}

/// Lets operators, the guest and the outlet speak to the core.
fn listen(
    host: &mut Host,
    guest: &Arc<Guest>,
    inputs: &mpsc::Sender<Input>,
) -> Result<Requests, NodeError> {
    let to_core = inputs.clone();
    let requests = Requests::pass(host, move |request| {
        let _ = to_core.send(Input::Control(request));
    });
    let to_core = inputs.clone();
    guest.on_stale_release(move || {
        let _ = to_core.send(Input::StaleRelease);
    });
    let to_core = inputs.clone();
    guest.outlet().on_first_held(Box::new(move || {
        let _ = to_core.send(Input::OutputWaits);
    }));
    if guest.outlet().stats().held_bytes > 0 {
        // Said by a promotion, before anybody was there to tell.
        let _ = inputs.send(Input::OutputWaits);
    }
    let to_core = inputs.clone();
    guest
        .on_event(move |event| {
            let _ = to_core.send(Input::Guest(event));
        })
        .map_err(NodeError::Thread)?;
    Ok(requests)
}

fn machine(host: &Host, promoted: Promoted) -> Primary {
    let now = Instant::now();
    let Promoted { register, first } = promoted;
    let random = rand::rng().next_u64();
    Primary::new(machine_config(&host.config), register, first, random, host.clock.at(now))
}

fn machine_config(config: &crate::config::VmConfig) -> Config {
    let replication = &config.replication;
    Config {
        node: config.node.name.clone(),
        pace: replication.pace,
        heartbeat: replication.heartbeat,
        drop_after: replication.drop,
        lag_max: replication.lag,
        freeze_gap: replication.drop.min(replication.detection) / 2,
        ask_retry: Duration::from_millis(100),
        epochs_in_flight_max: replication.in_flight_epochs_max.get() as usize,
        bytes_in_flight_max: u64::from(replication.in_flight_mib_max.get()) << 20,
        held_output_bytes_max: u64::from(replication.held_output_mib_max.get()) << 20,
        seed_pages_left_max: SEED_PAGES_LEFT_MAX,
        seed_rounds_max: SEED_ROUNDS_MAX,
    }
}
