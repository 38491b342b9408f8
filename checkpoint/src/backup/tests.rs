//! The backup's machine in virtual time: each test is a sentence of the
//! protocol.

use std::{collections::BTreeMap, time::Duration};

use arbiter::{ImageId, NodeId, Operation, Outcome, Register, Term};

use super::{Action, Backup, Config, Event, Standing, stage::EPOCHS_AHEAD_MAX};
use crate::{
    Answer, Epoch, MemoryLayout, PageNumber, PageRun, Question,
    chunk::{ChunkId, Digest, epoch_digest},
    message::{Close, HeldImage, Hello, Machine, Refusal, ToBackup, ToPrimary},
};

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn register(term: u64, primary: &str, members: &[&str]) -> Register {
    let in_sync = members.iter().map(|name| (node(name), IMAGE)).collect();
    Register { term: Term::new(term), primary: node(primary), in_sync }
}

/// The image that everybody has, unless a test says otherwise.
const IMAGE: ImageId = ImageId::new(5);
const BEGIN: ToBackup = ToBackup::BeginSeed { image: IMAGE };

fn held(committed: u64) -> Option<HeldImage> {
    Some(HeldImage { id: IMAGE, committed: Epoch::new(committed) })
}

fn machine(pages: u64) -> Machine {
    let ram = PageRun { first: PageNumber::new(0), count: pages };
    Machine {
        layout: MemoryLayout::new(vec![ram]).unwrap(),
        vcpus: 1,
        traits: BTreeMap::from([("cpu vendor".to_owned(), "any".into())]),
    }
}

fn hello() -> Hello {
    let versions = vec!["romulus/3".to_owned()];
    Hello { versions, vm: "web".parse().unwrap(), machine: machine(16) }
}

struct Bench {
    machine: Backup,
    now: Duration,
    actions: Vec<Action>,
}

impl Bench {
    fn config() -> Config {
        Config {
            node: node("b"),
            vm: "web".parse().unwrap(),
            machine: machine(16),
            versions: vec!["romulus/3".to_owned()],
            detection: Duration::from_millis(150),
            freeze_gap: Duration::from_millis(60),
            ask_retry: Duration::from_millis(30),
            nack_after: Duration::from_millis(20),
            staging_bytes_max: 1 << 20,
        }
    }

    fn new() -> Self {
        Self::of(Backup::new(Self::config(), Term::ZERO, 9, Duration::ZERO))
    }

    fn of(machine: Backup) -> Self {
        Self { machine, now: Duration::ZERO, actions: Vec::new() }
    }

    /// The register that it expects in the change that it asked for last.
    fn expects(&mut self) -> Option<Register> {
        let expected = |action| match action {
            Action::Ask(Question::Change(request)) => request.expected,
            _ => None,
        };
        self.take().into_iter().rev().find_map(expected)
    }

    /// The image that it names when `peer` knocks.
    fn welcomes(&mut self, peer: &str, term: u64) -> Option<HeldImage> {
        let term = Term::new(term);
        self.tell(Event::Knock { peer: node(peer), term, hello: hello() });
        let welcome = |action| match action {
            Action::Welcome(welcome) => Some(welcome.image),
            _ => None,
        };
        self.take().into_iter().find_map(welcome).expect("a welcome")
    }

    fn tell(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        self.machine.handle(self.now, event);
        while let Some(action) = self.machine.poll_action() {
            if !matches!(action, Action::Note(_)) {
                self.actions.push(action);
            }
        }
    }

    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.tell(Event::Timeout);
        }
        self.now = self.now.max(end);
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    fn knock(&mut self, term: u64, hello: Hello) {
        self.tell(Event::Knock { peer: node("a"), term: Term::new(term), hello });
    }

    fn hear(&mut self, term: u64, message: ToBackup) {
        self.tell(Event::Heard { term: Term::new(term), message });
    }

    fn stage(&mut self, epoch: u64, index: u32) {
        let id = ChunkId { epoch: Epoch::new(epoch), index };
        self.tell(Event::Staged { term: self.machine.term(), id, digest: digest(id), pages: 1 });
    }

    fn close(&mut self, epoch: u64, chunks: u32, seed_chunks: Option<u32>) {
        let term = self.machine.term().get();
        let message = ToBackup::Close(close(epoch, chunks, seed_chunks));
        self.hear(term, message);
    }

    /// Whole at epoch 5, a member as of term 2.
    fn standing() -> Self {
        let mut bench = Self::new();
        bench.knock(1, hello());
        bench.hear(1, BEGIN);
        bench.stage(0, 0);
        bench.stage(5, 0);
        bench.close(5, 1, Some(1));
        bench.hear(2, ToBackup::Membership(register(2, "a", &["b"])));
        assert_eq!(bench.machine.standing(), Standing::Whole);
        bench.take();
        bench
    }

    /// As [`Bench::standing`], after the primary fell silent.
    fn asking() -> Self {
        let mut bench = Self::standing();
        bench.pass(Duration::from_millis(200));
        assert_eq!(bench.machine.standing(), Standing::Asking);
        bench
    }
}

fn digest(id: ChunkId) -> Digest {
    let mut digest = [id.index as u8; 32];
    digest[0] = id.epoch.get() as u8;
    digest
}

fn close(epoch: u64, chunks: u32, seed_chunks: Option<u32>) -> Close {
    let epoch = Epoch::new(epoch);
    let digests: Vec<Digest> = (0..chunks).map(|index| digest(ChunkId { epoch, index })).collect();
    Close { epoch, seed_chunks, chunks, pages: u64::from(chunks), digest: epoch_digest(&digests) }
}

fn acks(actions: &[Action]) -> Vec<u64> {
    let committed = actions.iter().filter_map(|action| match action {
        Action::Send(ToPrimary::Ack { committed, .. }) => Some(committed.get()),
        _ => None,
    });
    committed.collect()
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let cases: [(u64, Hello, &str); 4] = [
        (1, Hello { versions: vec!["romulus/9".into()], ..hello() }, "romulus/3"),
        (1, Hello { vm: "db".parse().unwrap(), ..hello() }, "`web`, not `db`"),
        (1, Hello { machine: machine(32), ..hello() }, "memory differs"),
        (0, hello(), "term 2"),
    ];
    for (term, hello, words) in cases {
        let mut bench = Bench::standing();
        bench.knock(term.max(if term == 0 { 0 } else { 2 }), hello);
        let actions = bench.take();
        let [Action::Refuse(refusal)] = &actions[..] else { panic!("{actions:?}") };
        assert!(refusal.to_string().contains(words), "{refusal}");
    }
}

#[test]
fn a_seed_is_applied_and_acknowledged_without_gaps() {
    let mut bench = Bench::new();
    bench.knock(1, hello());
    bench.hear(1, BEGIN);
    bench.take();
    bench.stage(0, 1);
    assert!(bench.take().is_empty());
    bench.stage(0, 0);
    let acknowledged = Action::Send(ToPrimary::SeedAck { chunks: 2 });
    assert_eq!(bench.take(), [Action::ApplySeed { chunks: 2 }, acknowledged]);
}

#[test]
fn a_seed_is_acknowledged_again_under_a_new_term() {
    let mut bench = Bench::new();
    bench.knock(1, hello());
    bench.hear(1, BEGIN);
    bench.stage(0, 0);
    bench.take();
    // Another backup was admitted: the primary takes no acknowledgement of the
    // term before any more.
    bench.hear(2, ToBackup::Membership(register(2, "a", &["c"])));
    let again = Action::Send(ToPrimary::SeedAck { chunks: 1 });
    assert!(bench.take().contains(&again));
}

#[test]
fn the_joining_epoch_needs_the_whole_seed() {
    let mut bench = Bench::new();
    bench.knock(1, hello());
    bench.hear(1, BEGIN);
    bench.stage(7, 0);
    bench.close(7, 1, Some(2));
    bench.stage(0, 0);
    assert!(acks(&bench.take()).is_empty());
    bench.stage(0, 1);
    assert_eq!(acks(&bench.take()), [7]);
    assert_eq!(bench.machine.standing(), Standing::Whole);
}

#[test]
fn epochs_commit_in_their_order() {
    let mut bench = Bench::standing();
    bench.stage(7, 0);
    bench.close(7, 1, None);
    assert!(acks(&bench.take()).is_empty());
    bench.close(6, 2, None);
    bench.stage(6, 1);
    assert!(acks(&bench.take()).is_empty());
    bench.stage(6, 0);
    let actions = bench.take();
    let applied: Vec<_> =
        actions.iter().filter(|action| matches!(action, Action::Apply { .. })).collect();
    assert_eq!(applied.len(), 2, "{actions:?}");
    assert_eq!(acks(&actions), [7]);
}

#[test]
fn an_epoch_with_a_wrong_digest_ends_the_session() {
    let mut bench = Bench::standing();
    bench.stage(6, 0);
    bench.hear(2, ToBackup::Close(Close { digest: [0xee; 32], ..close(6, 1, None) }));
    let actions = bench.take();
    assert!(
        acks(&actions).is_empty() && !actions.iter().any(|a| matches!(a, Action::Apply { .. }))
    );
    assert!(actions.iter().any(|action| matches!(action, Action::Disconnect { .. })));
    // What was committed before stays.
    assert_eq!(bench.machine.standing(), Standing::Whole);
}

#[test]
fn what_does_not_come_is_asked_for() {
    let mut bench = Bench::standing();
    bench.stage(6, 1);
    bench.close(6, 3, None);
    bench.take();
    bench.pass(Duration::from_millis(25));
    let nack = ToPrimary::Nack { epoch: Epoch::new(6), chunks: vec![0, 2] };
    assert_eq!(bench.take(), [Action::Send(nack)]);
}

#[test]
fn a_slow_line_is_not_asked_again_and_again() {
    let mut bench = Bench::standing();
    bench.close(6, 4, None);
    // Something comes within every patience: the rest is on its way.
    for index in 0..3 {
        bench.pass(Duration::from_millis(15));
        bench.stage(6, index);
        assert_eq!(bench.take(), []);
    }
    // Then nothing: asked after 20 ms, then after 40, then after 80.
    let nack = Action::Send(ToPrimary::Nack { epoch: Epoch::new(6), chunks: vec![3] });
    for millis in [25, 42, 80] {
        bench.pass(Duration::from_millis(millis - 10));
        assert_eq!(bench.take(), [], "{millis}");
        bench.pass(Duration::from_millis(10));
        assert_eq!(bench.take(), std::slice::from_ref(&nack), "{millis}");
    }
}

#[test]
fn a_chunk_of_a_stale_term_is_asked_for_and_blamed_on_nobody() {
    let mut bench = Bench::standing();
    let id = ChunkId { epoch: Epoch::new(6), index: 2 };
    bench.tell(Event::PassedOver { id });
    let nack = ToPrimary::Nack { epoch: Epoch::new(6), chunks: vec![2] };
    assert_eq!(bench.take(), [Action::Send(nack)]);
}

#[test]
fn a_broken_image_is_given_up() {
    let mut bench = Bench::standing();
    bench.tell(Event::ImageBroken { why: "page 7".into() });
    let actions = bench.take();
    assert!(actions.contains(&Action::Discard), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Disconnect { .. })));
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.take(), [], "there is nothing to promote");
}

#[test]
fn a_stale_frame_changes_nothing() {
    let mut bench = Bench::standing();
    bench.hear(1, BEGIN);
    bench.hear(1, ToBackup::Heartbeat { ping: 3 });
    assert!(bench.take().is_empty());
    assert_eq!(bench.machine.standing(), Standing::Whole);
}

#[test]
fn a_heartbeat_tells_whether_anything_is_done() {
    let mut bench = Bench::standing();
    let steps = |bench: &mut Bench| {
        bench.hear(2, ToBackup::Heartbeat { ping: 3 });
        bench.take().into_iter().find_map(|action| match action {
            Action::Send(ToPrimary::Heartbeat { pong: 3, steps }) => Some(steps),
            _ => None,
        })
    };
    let before = steps(&mut bench).expect("an answer");
    assert_eq!(steps(&mut bench), Some(before));
    bench.hear(2, ToBackup::Verify { epoch: Epoch::new(6) });
    bench.stage(6, 0);
    assert_eq!(steps(&mut bench), Some(before + 1));
    assert_eq!(steps(&mut bench), Some(before + 1), "the digest's epoch is not committed");
    bench.close(6, 1, None);
    bench.take();
    assert_eq!(steps(&mut bench), Some(before + 2), "a digest is under way");
    assert_eq!(steps(&mut bench), Some(before + 3));
    bench.tell(Event::ImageDigest { epoch: Epoch::new(6), digest: [6; 32] });
    bench.take();
    assert_eq!(steps(&mut bench), Some(before + 3));
}

#[test]
fn an_image_that_the_register_counts_on_is_not_given_up() {
    let mut bench = Bench::standing();
    bench.hear(2, BEGIN);
    let actions = bench.take();
    assert!(matches!(actions[..], [Action::Disconnect { .. }]), "{actions:?}");
    assert_eq!(bench.machine.standing(), Standing::Whole);
}

#[test]
fn who_asks_has_stopped_acknowledging() {
    let mut bench = Bench::asking();
    let actions = bench.take();
    let disconnected = actions.iter().position(|a| matches!(a, Action::Disconnect { .. }));
    let asked = actions.iter().position(|a| matches!(a, Action::Ask(Question::Change(_))));
    assert!(disconnected.expect("ended") < asked.expect("asked"));
    bench.stage(6, 0);
    bench.close(6, 1, None);
    bench.knock(2, hello());
    assert_eq!(bench.take(), [Action::Refuse(Refusal::Promoting)]);
}

#[test]
fn the_winner_goes_on_from_the_committed_epoch() {
    let mut bench = Bench::asking();
    bench.take();
    let won = register(3, "b", &[]);
    bench.tell(Event::Answered(Answer::Outcome(Outcome::Set(won.clone()))));
    let promote = Action::Promote { register: won, epoch: Epoch::new(5) };
    assert!(bench.take().contains(&promote));
}

#[test]
fn the_loser_gives_up_its_image() {
    let mut bench = Bench::asking();
    bench.take();
    let solo = Answer::Outcome(Outcome::Mismatch(Some(register(3, "a", &[]))));
    bench.tell(Event::Answered(solo));
    assert!(bench.take().contains(&Action::Discard));
    assert_eq!(bench.machine.standing(), Standing::Waiting);
}

#[test]
fn one_question_at_a_time() {
    let mut bench = Bench::asking();
    bench.tell(Event::ImageBroken { why: "a delta".to_owned() });
    assert_eq!(bench.machine.standing(), Standing::Waiting);
    // The same primary lives, and seeds it again before the arbiter answers.
    bench.knock(2, hello());
    bench.hear(2, BEGIN);
    bench.stage(0, 0);
    bench.stage(9, 0);
    bench.close(9, 1, Some(1));
    bench.hear(3, ToBackup::Membership(register(3, "a", &["b"])));
    bench.take();
    bench.pass(Duration::from_millis(500));
    let asks = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Ask(_)));
    assert!(!asks(&bench.take()), "the answer that comes would be taken for another's");
    bench.tell(Event::Answered(Answer::Unknown));
    bench.pass(Duration::from_millis(500));
    assert!(asks(&bench.take()));
}

#[test]
fn an_image_that_the_register_does_not_mean_is_not_promoted() {
    // It means another process of this node, seeded while this one stood still:
    // by the same primary or by another. Or that one was promoted, and has died.
    let twin = |term, primary| {
        let in_sync = [(node("b"), ImageId::new(6))].into();
        Register { in_sync, ..register(term, primary, &[]) }
    };
    for found in [twin(4, "a"), twin(5, "c"), register(5, "b", &[]), register(4, "b", &["a"])] {
        let mut bench = Bench::asking();
        bench.take();
        bench.tell(Event::Answered(Answer::Outcome(Outcome::Mismatch(Some(found)))));
        let actions = bench.take();
        assert!(actions.contains(&Action::Discard));
        let goes_on = |a: &Action| matches!(a, Action::Ask(_) | Action::Promote { .. });
        assert!(!actions.iter().any(goes_on), "{actions:?}");
    }
    // It means this image, whatever else has changed.
    let mut bench = Bench::asking();
    bench.take();
    let found = register(5, "a", &["b", "c"]);
    bench.tell(Event::Answered(Answer::Outcome(Outcome::Mismatch(Some(found.clone())))));
    let asks = bench.take().into_iter().find_map(|action| match action {
        Action::Ask(Question::Change(request)) => Some((request.expected, request.operation)),
        _ => None,
    });
    assert_eq!(asks, Some((Some(found), Operation::Promote { image: IMAGE })));
}

#[test]
fn whom_a_register_counts_by_name_only_is_seeded_anew() {
    let mut bench = Bench::standing();
    let other =
        Register { in_sync: [(node("b"), ImageId::new(6))].into(), ..register(3, "a", &[]) };
    bench.hear(3, ToBackup::Membership(other));
    bench.take();
    bench.hear(3, ToBackup::BeginSeed { image: ImageId::new(7) });
    assert_eq!(bench.machine.standing(), Standing::Seeding);
    assert!(bench.take().contains(&Action::Discard));
    // The register means this very image: it is not given up.
    let mut bench = Bench::standing();
    bench.hear(2, ToBackup::BeginSeed { image: ImageId::new(7) });
    assert_eq!(bench.machine.standing(), Standing::Whole);
}

#[test]
fn what_was_never_asked_can_be_taken_back_and_what_may_have_been_cannot() {
    let mut bench = Bench::asking();
    bench.tell(Event::Answered(Answer::Unsent));
    assert_eq!(bench.machine.standing(), Standing::Whole);
    let mut bench = Bench::asking();
    bench.tell(Event::Answered(Answer::Unknown));
    bench.pass(Duration::from_millis(40));
    bench.tell(Event::Answered(Answer::Unsent));
    assert_eq!(bench.machine.standing(), Standing::Asking);
}

#[test]
fn a_register_that_went_back_is_not_believed() {
    for found in [None, Some(register(1, "b", &[]))] {
        let mut bench = Bench::asking();
        bench.take();
        bench.tell(Event::Answered(Answer::Outcome(Outcome::Mismatch(found))));
        let promoted = bench.take().iter().any(|action| matches!(action, Action::Promote { .. }));
        assert!(!promoted);
    }
}

#[test]
fn who_stood_still_does_not_blame_the_primary() {
    let mut bench = Bench::standing();
    bench.now += Duration::from_secs(5);
    bench.tell(Event::Timeout);
    assert_eq!(bench.machine.standing(), Standing::Whole);
    bench.pass(Duration::from_millis(200));
    assert_eq!(bench.machine.standing(), Standing::Asking);
}

#[test]
fn a_handover_needs_everything_committed() {
    let successor = register(3, "b", &[]);
    let mut bench = Bench::standing();
    let message = ToBackup::HandOver { epoch: Epoch::new(6), register: successor.clone() };
    bench.hear(3, message);
    assert_eq!(bench.machine.standing(), Standing::Whole);
    let mut bench = Bench::standing();
    let message = ToBackup::HandOver { epoch: Epoch::new(5), register: successor.clone() };
    bench.hear(3, message);
    bench.tell(Event::Answered(Answer::Register(Some(successor))));
    assert_eq!(bench.machine.standing(), Standing::Promoting);
}

#[test]
fn a_handover_is_what_the_arbiter_says_and_nobody_else() {
    let told = |found: Option<Register>| {
        let mut bench = Bench::standing();
        let register = register(3, "b", &[]);
        bench.hear(3, ToBackup::HandOver { epoch: Epoch::new(5), register });
        assert!(bench.take().contains(&Action::Ask(Question::Read)));
        bench.tell(Event::Answered(Answer::Register(found)));
        let promotes = |action: &Action| matches!(action, Action::Promote { .. });
        assert!(!bench.take().iter().any(promotes));
        bench
    };
    // Nothing has happened, or the register counts on it under somebody else.
    for found in [None, Some(register(2, "a", &["b"])), Some(register(3, "c", &["b"]))] {
        let bench = told(found);
        assert_eq!(bench.machine.standing(), Standing::Whole, "the image is kept");
    }
    let bench = told(Some(register(3, "c", &[])));
    assert_eq!(bench.machine.standing(), Standing::Waiting);
}

#[test]
fn nobody_adds_to_the_image_of_another_primary() {
    // In the same term: there is one primary in it.
    let mut bench = Bench::standing();
    bench.tell(Event::Knock { peer: node("c"), term: Term::new(2), hello: hello() });
    let refused = |action: &Action| matches!(action, Action::Refuse(Refusal::Unready { .. }));
    assert!(bench.take().iter().any(refused));
    assert_eq!(bench.machine.primary(), Some(&node("a")), "its session goes on");
    // In a later term, which it says that it has: an image that grew under it is
    // not the one that the register of the term before counts on.
    assert_eq!(bench.welcomes("c", 3), held(5));
    bench.hear(3, ToBackup::Membership(register(3, "a", &["b"])));
    assert!(bench.take().iter().any(|action| matches!(action, Action::Disconnect { .. })));
    bench.pass(Duration::from_millis(200));
    assert!(bench.take().contains(&Action::Ask(Question::Read)), "not a change of term 2");
    bench.tell(Event::Answered(Answer::Register(Some(register(2, "a", &["b"])))));
    assert_eq!(bench.machine.standing(), Standing::Whole);
    assert_eq!(bench.expects(), None);
}

#[test]
fn a_successor_that_was_not_waited_for_is_given_time() {
    // The handover was missed: the register tells of it.
    let mut bench = Bench::asking();
    let found = register(3, "c", &["a", "b"]);
    bench.take();
    bench.tell(Event::Answered(Answer::Outcome(Outcome::Mismatch(Some(found.clone())))));
    assert_eq!(bench.machine.standing(), Standing::Whole);
    bench.pass(Duration::from_millis(400));
    assert_eq!(bench.machine.standing(), Standing::Whole);
    bench.pass(Duration::from_millis(100));
    assert_eq!(bench.expects(), Some(found));
    // An operator does not wait.
    let mut bench = Bench::standing();
    bench.tell(Event::TakeOver);
    bench.take();
    let found = register(3, "c", &["a", "b"]);
    bench.tell(Event::Answered(Answer::Outcome(Outcome::Mismatch(Some(found.clone())))));
    assert_eq!(bench.expects(), Some(found));
}

#[test]
fn a_handover_to_another_keeps_the_image_of_who_has_all_of_it() {
    let successor = register(3, "c", &["a", "b"]);
    let hand_over = |epoch| {
        let mut bench = Bench::standing();
        let register = successor.clone();
        bench.hear(3, ToBackup::HandOver { epoch: Epoch::new(epoch), register });
        bench
    };
    for (epoch, counts) in [(5, true), (6, false)] {
        let mut bench = hand_over(epoch);
        assert_eq!(bench.welcomes("c", 3), held(5), "the successor sees what it lacks");
        assert_eq!(bench.machine.register().is_some_and(|known| known == &successor), counts);
    }
    // The successor is lost before it called.
    let mut bench = hand_over(5);
    bench.pass(Duration::from_millis(400));
    assert_eq!(bench.machine.standing(), Standing::Whole, "it changes its role first");
    bench.pass(Duration::from_millis(100));
    assert_eq!(bench.expects(), Some(successor));
}

#[test]
fn a_former_primary_has_the_image_that_its_successor_begins_with() {
    let handed = register(4, "a", &["b"]);
    let new = || {
        let (config, epoch) = (Bench::config(), Epoch::new(7));
        Bench::of(Backup::with_image(config, handed.clone(), epoch, 9, Duration::ZERO))
    };
    let mut bench = new();
    assert_eq!(bench.welcomes("a", 4), held(7));
    bench.stage(8, 0);
    bench.close(8, 1, None);
    assert!(bench.take().contains(&Action::Apply { epoch: Epoch::new(8) }));
    // The successor never calls: the guest goes on from where it stood.
    let mut bench = new();
    bench.pass(Duration::from_millis(500));
    assert_eq!(bench.expects(), Some(handed));
    let won = register(5, "b", &[]);
    bench.tell(Event::Answered(Answer::Outcome(Outcome::Set(won.clone()))));
    let promoted = Action::Promote { register: won, epoch: Epoch::new(7) };
    assert!(bench.take().contains(&promoted));
}

#[test]
fn a_register_of_an_earlier_life_hands_nothing_over() {
    let mut bench = Bench::asking();
    // From a term that this process was never told of.
    let found = register(7, "b", &["a"]);
    bench.tell(Event::Answered(Answer::Outcome(Outcome::Mismatch(Some(found)))));
    assert_eq!(bench.machine.standing(), Standing::Waiting);
    let mut bench = Bench::asking();
    let found = register(3, "b", &["a"]);
    bench.tell(Event::Answered(Answer::Outcome(Outcome::Mismatch(Some(found)))));
    assert_eq!(bench.machine.standing(), Standing::Promoting);
}

#[test]
fn the_digest_is_taken_between_two_epochs() {
    let mut bench = Bench::standing();
    bench.hear(2, ToBackup::Verify { epoch: Epoch::new(6) });
    for epoch in [6, 7] {
        bench.stage(epoch, 0);
    }
    bench.close(6, 1, None);
    bench.close(7, 1, None);
    let orders: Vec<_> = bench
        .take()
        .into_iter()
        .filter(|action| matches!(action, Action::Apply { .. } | Action::DigestImage { .. }))
        .collect();
    let [six, seven] = [6, 7].map(Epoch::new);
    let expected = [
        Action::Apply { epoch: six },
        Action::DigestImage { epoch: six },
        Action::Apply { epoch: seven },
    ];
    assert_eq!(orders, expected);
}

#[test]
fn a_primary_that_completes_nothing_loses_its_session() {
    let ends = |bench: &mut Bench| {
        bench.tell(Event::Excess);
        bench.take().iter().any(|action| matches!(action, Action::Disconnect { .. }))
    };
    let mut bench = Bench::standing();
    assert!(ends(&mut bench));
    assert_eq!(bench.machine.standing(), Standing::Whole, "what is committed stays");
    let mut bench = Bench::new();
    bench.knock(1, hello());
    assert!(ends(&mut bench), "before a seed begins");
    bench.knock(1, hello());
    bench.hear(1, BEGIN);
    assert!(ends(&mut bench));
    assert_eq!(bench.machine.standing(), Standing::Waiting);
}

#[test]
fn what_is_below_the_epoch_that_a_seed_ends_with_is_in_nobodys_way() {
    let mut bench = Bench::new();
    bench.knock(1, hello());
    bench.hear(1, BEGIN);
    bench.stage(0, 0);
    // On its way since before the seed began.
    bench.stage(3, 0);
    bench.take();
    bench.close(9, 1, Some(1));
    let unstaged = |epoch| Action::Unstage { epoch: Epoch::new(epoch) };
    assert_eq!(bench.take(), [unstaged(3)]);
    bench.stage(4, 0);
    assert_eq!(bench.take(), [unstaged(4)], "nor does it come later");
    bench.stage(9, 0);
    assert!(bench.take().contains(&Action::Apply { epoch: Epoch::new(9) }));
}

#[test]
fn a_seed_does_not_close_all_epochs_that_there_are() {
    let mut bench = Bench::new();
    bench.knock(1, hello());
    bench.hear(1, BEGIN);
    for epoch in 1..5000 {
        bench.close(epoch, 1, None);
    }
    assert_eq!(bench.machine.stages.len() as u64, EPOCHS_AHEAD_MAX);
}
