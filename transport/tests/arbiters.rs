//! Several arbiters with the same registers: whom a node asks next, and what it
//! may conclude.

mod cluster;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
};

use arbiter::{
    FileError, FileStore, Operation, Outcome, Record, Register, Request, Stamp, Store, StoreError,
    StoreId, Term, VmId,
};
use cluster::{ANYWHERE, Cluster, node, path_of, within};
use romulus_transport::{ArbiterClient, ArbiterServer, AskError, Options};

fn vm() -> VmId {
    "web".parse().unwrap()
}

fn create(caller: &str, stamp: u64) -> Request {
    let (expected, operation) = (None, Operation::Create);
    Request { caller: node(caller), expected, operation, stamp: Stamp::new(stamp) }
}

fn set() -> Outcome {
    Outcome::Set(Register { term: Term::FIRST, primary: node("a"), in_sync: [].into() })
}

/// What a handle does with a request before, or instead of, having it decided.
#[derive(Clone)]
enum Behaviour {
    Sound,
    /// Nothing happens, and it says so.
    Away,
    /// It happens, and nobody is told.
    Forgetful,
    /// It waits for a word on this channel first.
    Stuck(Arc<Mutex<mpsc::Receiver<()>>>),
    /// It waits for one before it reads, too, and nobody may come any further.
    Still(Arc<Mutex<mpsc::Receiver<()>>>),
    /// Nobody may come so far.
    Guarded,
}

/// A handle of registers that several arbiters have.
#[derive(Clone)]
struct Handle {
    registers: Arc<Mutex<FileStore>>,
    id: StoreId,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Handle {
    fn new(cluster: &Cluster, name: &str, id: StoreId) -> Self {
        let registers = FileStore::open(&path_of(&cluster.dir, name)).unwrap();
        let behaviour = Arc::new(Mutex::new(Behaviour::Sound));
        Self { registers: Arc::new(Mutex::new(registers)), id, behaviour }
    }

    /// Another arbiter's handle of the same registers.
    fn beside(&self, behaviour: Behaviour) -> Self {
        Self { behaviour: Arc::new(Mutex::new(behaviour)), ..self.clone() }
    }

    fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }
}

fn fault() -> FileError {
    FileError::Damaged { path: "register".into(), what: "torn".into() }
}

impl Store for Handle {
    fn id(&self) -> Result<StoreId, StoreError> {
        Ok(self.id)
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        if let Behaviour::Still(word) = behaviour {
            let _ = word.lock().unwrap().recv();
        }
        self.registers.lock().unwrap().load(vm)
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        let execute = || self.registers.lock().unwrap().execute(vm, request);
        match behaviour {
            Behaviour::Sound => execute(),
            Behaviour::Away => Err(StoreError::untouched(fault())),
            Behaviour::Forgetful => execute().and(Err(StoreError::unknown(fault()))),
            Behaviour::Stuck(word) => {
                let _ = word.lock().unwrap().recv();
                execute()
            }
            Behaviour::Guarded | Behaviour::Still(_) => panic!("{request:?} came to the store"),
        }
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.registers.lock().unwrap().list()
    }
}

fn serve(cluster: &Cluster, name: &str, handles: &[&Handle]) -> ArbiterServer {
    let boxed = |handle: &&Handle| Box::new((*handle).clone()) as Box<dyn Store + Send>;
    let stores = handles.iter().map(boxed).collect();
    ArbiterServer::serve(ANYWHERE, &cluster.identity(name), &Options::default(), stores).unwrap()
}

fn client(cluster: &Cluster, arbiters: &[(&str, SocketAddr)]) -> ArbiterClient {
    let endpoint = Arc::new(cluster.endpoint("a"));
    let arbiters = arbiters.iter().map(|(name, address)| (node(name), *address)).collect();
    ArbiterClient::new(endpoint, arbiters)
}

/// Two arbiters with the same registers, and a node that knows both.
struct Pair {
    cluster: Cluster,
    first: Handle,
    second: Handle,
    servers: [ArbiterServer; 2],
    client: ArbiterClient,
}

impl Pair {
    fn new(first: Behaviour, second: Behaviour) -> Self {
        let cluster = Cluster::new();
        let registers = Handle::new(&cluster, "registers", StoreId::Shared(7));
        let (first, second) = (registers.beside(first), registers.beside(second));
        let servers =
            [serve(&cluster, "arbiter-1", &[&first]), serve(&cluster, "arbiter-2", &[&second])];
        let addresses = [0, 1].map(|index| servers[index].local_address());
        let client = client(&cluster, &[("arbiter-1", addresses[0]), ("arbiter-2", addresses[1])]);
        Self { cluster, first, second, servers, client }
    }

    async fn ask(&self, stamp: u64) -> Result<Outcome, AskError> {
        within(self.client.execute(&vm(), &create("a", stamp))).await
    }

    fn record(&self) -> Option<Record> {
        self.first.load(&vm()).unwrap()
    }
}

#[tokio::test]
async fn when_one_is_gone_the_next_is_asked() {
    let pair = Pair::new(Behaviour::Sound, Behaviour::Sound);
    assert_eq!(pair.ask(1).await.unwrap(), set());
    let Pair { client, servers: [first, _second], cluster: _cluster, .. } = pair;
    within(first.shutdown()).await;
    let again = within(client.execute(&vm(), &create("a", 1))).await.unwrap();
    assert_eq!(again, set());
    let twin = within(client.execute(&vm(), &create("a", 2))).await.unwrap();
    assert!(matches!(twin, Outcome::Mismatch(Some(_))), "{twin:?}");
}

#[tokio::test]
async fn when_one_cannot_decide_the_next_is_asked() {
    let pair = Pair::new(Behaviour::Away, Behaviour::Sound);
    assert_eq!(pair.ask(1).await.unwrap(), set());
}

#[tokio::test]
async fn when_none_can_decide_nothing_happened() {
    let pair = Pair::new(Behaviour::Away, Behaviour::Away);
    let told = pair.ask(1).await.unwrap_err();
    assert!(matches!(told, AskError::Unavailable { .. }), "{told:?}");
    assert!(!told.may_have_happened());
    assert!(told.to_string().contains("restore it"), "{told}");
    assert_eq!(pair.record(), None);
    pair.second.behave(Behaviour::Sound);
    assert_eq!(pair.ask(1).await.unwrap(), set());
}

#[tokio::test]
async fn arbiters_that_stand_still_leave_no_doubt() {
    let (word, waits) = mpsc::channel();
    let still = Behaviour::Still(Arc::new(Mutex::new(waits)));
    let pair = Pair::new(still.clone(), still);
    let told = pair.ask(1).await.unwrap_err();
    assert!(matches!(told, AskError::Unavailable { .. }), "{told:?}");
    assert!(told.to_string().contains("no answer in time"), "{told}");
    // When they wake, nothing of it happens late.
    drop(word);
    assert_eq!(within(pair.client.load(&vm())).await.unwrap(), None);
    pair.first.behave(Behaviour::Sound);
    assert_eq!(pair.ask(1).await.unwrap(), set());
}

#[tokio::test]
async fn a_copy_that_may_have_happened_is_not_forgotten_for_those_that_did_not() {
    let pair = Pair::new(Behaviour::Forgetful, Behaviour::Away);
    let told = pair.ask(1).await.unwrap_err();
    assert!(told.may_have_happened(), "{told:?}");
    assert!(pair.record().is_some(), "it did happen");
    // The same question to another arbiter ends the doubt.
    pair.first.behave(Behaviour::Away);
    pair.second.behave(Behaviour::Sound);
    assert_eq!(pair.ask(1).await.unwrap(), set());
}

#[tokio::test]
async fn a_copy_that_went_unanswered_is_asked_for_elsewhere() {
    let (word, waits) = mpsc::channel();
    let stuck = Behaviour::Stuck(Arc::new(Mutex::new(waits)));
    let pair = Pair::new(stuck, Behaviour::Away);
    let told = pair.ask(1).await.unwrap_err();
    assert!(told.may_have_happened(), "{told:?}");
    pair.second.behave(Behaviour::Sound);
    assert_eq!(pair.ask(1).await.unwrap(), set());
    // The copy that was late finds that it has happened already.
    let before = pair.record();
    drop(word);
    let twin = pair.ask(2).await.unwrap();
    assert!(matches!(twin, Outcome::Mismatch(Some(_))), "{twin:?}");
    assert_eq!(pair.record(), before);
}

#[tokio::test]
async fn arbiters_with_registers_of_their_own_are_not_asked_together() {
    let cluster = Cluster::new();
    let stores = ["one", "two"].map(|name| Handle::new(&cluster, name, StoreId::Own));
    stores.iter().for_each(|store| store.behave(Behaviour::Guarded));
    let servers = [0, 1].map(|index| serve(&cluster, "arbiter", &[&stores[index]]));
    let addresses = servers.each_ref().map(|server| ("arbiter", server.local_address()));
    let told = within(client(&cluster, &addresses).execute(&vm(), &create("a", 1))).await;
    let told = told.unwrap_err();
    assert!(matches!(told, AskError::Foreign { .. }), "{told:?}");
    assert!(!told.may_have_happened());
    assert!(told.to_string().contains("configure only this one"), "{told}");
    // Alone, each of them is as good as any.
    stores[0].behave(Behaviour::Sound);
    let alone = client(&cluster, &addresses[..1]);
    assert_eq!(within(alone.execute(&vm(), &create("a", 1))).await.unwrap(), set());
}

#[tokio::test]
async fn an_arbiter_with_other_registers_is_not_asked() {
    let cluster = Cluster::new();
    let ours = Handle::new(&cluster, "ours", StoreId::Shared(1));
    let theirs = Handle::new(&cluster, "theirs", StoreId::Shared(2));
    theirs.behave(Behaviour::Guarded);
    let server = serve(&cluster, "arbiter-1", &[&ours]);
    let other = serve(&cluster, "arbiter-2", &[&theirs]);
    let addresses = [("arbiter-1", server.local_address()), ("arbiter-2", other.local_address())];
    let client = client(&cluster, &addresses);
    assert_eq!(within(client.execute(&vm(), &create("a", 1))).await.unwrap(), set());
    ours.behave(Behaviour::Away);
    let told = within(client.execute(&vm(), &create("a", 1))).await.unwrap_err();
    assert!(matches!(told, AskError::Foreign { .. }), "{told:?}");
    assert!(told.to_string().contains("the same etcd cluster and prefix"), "{told}");
}

#[tokio::test]
async fn nobody_in_anothers_name_comes_to_the_store() {
    let cluster = Cluster::new();
    let store = Handle::new(&cluster, "registers", StoreId::Own);
    store.behave(Behaviour::Guarded);
    let server = serve(&cluster, "arbiter", &[&store]);
    let client = client(&cluster, &[("arbiter", server.local_address())]);
    let denied = within(client.execute(&vm(), &create("b", 1))).await.unwrap_err();
    assert!(matches!(denied, AskError::Denied { .. }), "{denied:?}");
}

#[tokio::test]
async fn a_handle_that_waits_holds_up_nobody_else() {
    let cluster = Cluster::new();
    let sound = Handle::new(&cluster, "registers", StoreId::Shared(7));
    let (word, waits) = mpsc::channel();
    let stuck = sound.beside(Behaviour::Stuck(Arc::new(Mutex::new(waits))));
    let server = serve(&cluster, "arbiter", &[&stuck, &sound]);
    let client = client(&cluster, &[("arbiter", server.local_address())]);
    let mut unanswered = 0;
    for stamp in 1..5 {
        match within(client.execute(&vm(), &create("a", stamp))).await {
            Ok(_) => {}
            Err(error) => {
                assert!(error.may_have_happened(), "{error:?}");
                unanswered += 1;
            }
        }
    }
    assert!(unanswered <= 1, "{unanswered} requests waited for one handle");
    drop(word);
}
