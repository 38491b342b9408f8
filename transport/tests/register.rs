//! The arbiter's service over loopback: answers, impostors, restarts.

mod cluster;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use arbiter::{
    FileError, FileStore, ImageId, Operation, Outcome, Record, Register, Request, Stamp, Store,
    StoreError, StoreId, Term, VmId,
};
use cluster::{ANYWHERE, Cluster, node, path_of, within};
use romulus_transport::{ArbiterClient, ArbiterServer, AskError, DialError, Options};

fn vm(name: &str) -> VmId {
    name.parse().unwrap()
}

fn create(caller: &str, stamp: u64) -> Request {
    let (expected, operation) = (None, Operation::Create);
    Request { caller: node(caller), expected, operation, stamp: Stamp::new(stamp) }
}

fn first(primary: &str) -> Register {
    Register { term: Term::FIRST, primary: node(primary), in_sync: [].into() }
}

fn long_lived() -> Options {
    Options { idle_timeout: Duration::from_secs(600), ..Options::default() }
}

fn client(cluster: &Cluster, name: &str, address: SocketAddr) -> ArbiterClient {
    client_with(cluster, name, address, &long_lived())
}

fn client_with(
    cluster: &Cluster,
    name: &str,
    address: SocketAddr,
    options: &Options,
) -> ArbiterClient {
    let endpoint = cluster.endpoint_at(name, ANYWHERE, options);
    ArbiterClient::new(Arc::new(endpoint), vec![(node("arbiter"), address)])
}

/// An arbiter in a runtime of its own, to be killed without a word.
struct Process {
    runtime: tokio::runtime::Runtime,
    server: ArbiterServer,
}

impl Process {
    async fn start(cluster: &Cluster, at: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let identity = cluster.identity("arbiter");
        let path = path_of(&cluster.dir, "register");
        let serving = within(async {
            loop {
                // The one before may not have let go of file and port yet.
                let _inside = runtime.enter();
                if let Ok(store) = FileStore::open(&path)
                    && let Ok(server) =
                        ArbiterServer::serve(at, &identity, &long_lived(), vec![Box::new(store)])
                {
                    break server;
                }
                tokio::task::yield_now().await;
            }
        });
        let server = serving.await;
        Self { runtime, server }
    }

    fn kill(self) {
        // Until its threads have ended they could still say goodbye.
        let runtime = self.runtime;
        std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        drop(self.server);
    }
}

#[tokio::test]
async fn nodes_are_answered() {
    let cluster = Cluster::new();
    let process = Process::start(&cluster, ANYWHERE).await;
    let (a, b) = (
        client(&cluster, "a", process.server.local_address()),
        client(&cluster, "b", process.server.local_address()),
    );
    assert_eq!(within(a.load(&vm("web"))).await.unwrap(), None);
    let claimed = within(a.execute(&vm("web"), &create("a", 1))).await.unwrap();
    assert_eq!(claimed, Outcome::Set(first("a")));
    let lost = within(b.execute(&vm("web"), &create("b", 2))).await.unwrap();
    assert_eq!(lost, Outcome::Mismatch(Some(first("a"))));
    let record = Record { register: first("a"), stamp: Stamp::new(1) };
    assert_eq!(within(b.load(&vm("web"))).await.unwrap(), Some(record.clone()));
    assert_eq!(within(b.list()).await.unwrap(), [(vm("web"), record)]);
    process.kill();
}

#[tokio::test]
async fn nobody_asks_in_anothers_name_nor_for_the_impossible() {
    let cluster = Cluster::new();
    let process = Process::start(&cluster, ANYWHERE).await;
    let a = client(&cluster, "a", process.server.local_address());
    let denied = within(a.execute(&vm("web"), &create("b", 1))).await.unwrap_err();
    assert_eq!(denied.to_string(), "the arbiter denies the request: a asked in the name of b");
    assert!(!denied.may_have_happened());
    let impossible =
        Request { operation: Operation::Promote { image: ImageId::new(5) }, ..create("a", 1) };
    let denied = within(a.execute(&vm("web"), &impossible)).await.unwrap_err();
    assert!(matches!(denied, AskError::Denied { .. }), "{denied:?}");
    assert_eq!(within(a.load(&vm("web"))).await.unwrap(), None);
    process.kill();
}

#[tokio::test]
async fn a_killed_arbiter_comes_back_and_knows_what_it_did() {
    let cluster = Cluster::new();
    let process = Process::start(&cluster, ANYWHERE).await;
    let address = process.server.local_address();
    let a = client(&cluster, "a", address);
    within(a.execute(&vm("web"), &create("a", 1))).await.unwrap();
    process.kill();
    let process = Process::start(&cluster, address).await;
    // Over the connection that is dead by now, without the client knowing.
    let again = within(a.execute(&vm("web"), &create("a", 1))).await.unwrap();
    assert_eq!(again, Outcome::Set(first("a")));
    let twin = within(a.execute(&vm("web"), &create("a", 2))).await.unwrap();
    assert_eq!(twin, Outcome::Mismatch(Some(first("a"))));
    process.kill();
}

#[tokio::test]
async fn an_absent_arbiter_was_not_asked() {
    let cluster = Cluster::new();
    let process = Process::start(&cluster, ANYWHERE).await;
    let address = process.server.local_address();
    process.kill();
    let a = client(&cluster, "a", address);
    let unsent = within(a.execute(&vm("web"), &create("a", 1))).await.unwrap_err();
    assert!(
        matches!(&unsent, AskError::Unsent { source: DialError::Unreachable { .. } }),
        "{unsent:?}"
    );
    assert!(!unsent.may_have_happened());
}

#[tokio::test]
async fn an_arbiter_of_another_name_or_cluster_was_not_asked() {
    let cluster = Cluster::new();
    let process = Process::start(&cluster, ANYWHERE).await;
    let address = process.server.local_address();
    let endpoint = Arc::new(cluster.endpoint("a"));
    let wrong = ArbiterClient::new(endpoint, vec![(node("b"), address)]);
    let stranger = client(&Cluster::new(), "a", address);
    for client in [wrong, stranger] {
        let error = within(client.load(&vm("web"))).await.unwrap_err();
        assert!(
            matches!(&error, AskError::Unsent { source: DialError::Certificate { .. } }),
            "{error:?}"
        );
    }
    process.kill();
}

/// How the first answer of a store becomes late.
struct Late {
    /// Told when the request has happened.
    happened: tokio::sync::mpsc::UnboundedSender<()>,
    /// The answer waits for a word, or for the end of who could give it.
    word: mpsc::Receiver<()>,
}

/// A store that fails as told.
struct Failing {
    inner: FileStore,
    late: Option<Late>,
}

impl Store for Failing {
    fn id(&self) -> Result<StoreId, StoreError> {
        self.inner.id()
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        self.inner.load(vm)
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        let outcome = self.inner.execute(vm, request)?;
        if let Some(Late { happened, word }) = self.late.take() {
            let _ = happened.send(());
            let _ = word.recv();
            return Ok(outcome);
        }
        if request.stamp == Stamp::new(99) {
            return Err(StoreError::unknown(FileError::Damaged {
                path: "register".into(),
                what: "torn".into(),
            }));
        }
        Ok(outcome)
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.inner.list()
    }
}

fn serve_failing(cluster: &Cluster, late: Option<Late>) -> ArbiterServer {
    let inner = FileStore::open(&path_of(&cluster.dir, "register")).unwrap();
    let identity = cluster.identity("arbiter");
    let stores = vec![Box::new(Failing { inner, late }) as Box<dyn Store + Send>];
    ArbiterServer::serve(ANYWHERE, &identity, &Options::default(), stores).unwrap()
}

#[tokio::test]
async fn a_late_answer_is_asked_for_again() {
    let cluster = Cluster::new();
    let (happened, mut has_happened) = tokio::sync::mpsc::unbounded_channel();
    let (word, waits) = mpsc::channel();
    let server = serve_failing(&cluster, Some(Late { happened, word: waits }));
    let hasty = Options { request_timeout: Duration::from_millis(200), ..long_lived() };
    let a = client_with(&cluster, "a", server.local_address(), &hasty);
    let mut in_doubt = false;
    within(async {
        // A busy machine may need longer to connect, and then nothing happens.
        while has_happened.try_recv().is_err() {
            let told = a.execute(&vm("web"), &create("a", 1)).await.unwrap_err();
            in_doubt |= told.may_have_happened();
        }
    })
    .await;
    assert!(in_doubt, "it happened, and nobody was told that it may have");
    drop(word);
    // The same stamp, patiently: what has happened already is answered as if it did now.
    let a = client(&cluster, "a", server.local_address());
    let claimed = within(a.execute(&vm("web"), &create("a", 1))).await.unwrap();
    assert_eq!(claimed, Outcome::Set(first("a")));
    let twin = within(a.execute(&vm("web"), &create("a", 2))).await.unwrap();
    assert_eq!(twin, Outcome::Mismatch(Some(first("a"))));
    within(server.shutdown()).await;
}

#[tokio::test]
async fn a_failed_store_leaves_it_unknown() {
    let cluster = Cluster::new();
    let server = serve_failing(&cluster, None);
    let a = client(&cluster, "a", server.local_address());
    let unknown = within(a.execute(&vm("web"), &create("a", 99))).await.unwrap_err();
    assert!(unknown.may_have_happened());
    assert!(unknown.to_string().contains("restore it"), "{unknown}");
    // It did happen, here.
    assert!(within(a.load(&vm("web"))).await.unwrap().is_some());
}

#[tokio::test]
async fn long_lists_come_whole_and_many_nodes_at_once_are_served() {
    let cluster = Cluster::new();
    let server = serve_failing(&cluster, None);
    let asking = ["a", "b", "c"].map(|name| {
        let client = client(&cluster, name, server.local_address());
        tokio::spawn(async move {
            for number in 0..100 {
                let vm = vm(&format!("{name}-{number:03}"));
                client.execute(&vm, &create(name, 1000 + number)).await.unwrap();
            }
            client
        })
    });
    let mut clients = Vec::new();
    for asked in asking {
        clients.push(within(asked).await.unwrap());
    }
    let list = within(clients[0].list()).await.unwrap();
    assert_eq!(list.len(), 300);
    assert!(list.is_sorted_by(|(first, _), (second, _)| first < second));
}

#[tokio::test]
async fn a_node_has_so_many_connections_and_no_streams_but_requests() {
    let cluster = Cluster::new();
    let inner = FileStore::open(&path_of(&cluster.dir, "register")).unwrap();
    let (identity, options) = (cluster.identity("arbiter"), long_lived());
    let server =
        ArbiterServer::serve(ANYWHERE, &identity, &options, vec![Box::new(inner)]).unwrap();
    let to = server.local_address();
    let connect = |name| {
        let (cluster, files) = (&cluster, cluster.files(name));
        async move { within(cluster.raw_of(&files, to, "arbiter", "romulus-arbiter")).await.unwrap() }
    };
    let other = connect("b").await;
    let first = connect("a").await;
    let opened = tokio::time::timeout(Duration::from_millis(200), first.open_uni()).await;
    assert!(opened.is_err(), "{opened:?}");
    let mut later = Vec::new();
    while first.close_reason().is_none() {
        assert!(later.len() < 1000, "a thousand connections of one node are too many");
        later.push(connect("a").await);
    }
    let reason = first.closed().await.to_string();
    assert!(reason.contains("too many connections"), "{reason}");
    assert!(other.close_reason().is_none());
    assert!(later.iter().all(|connection| connection.close_reason().is_none()));
    within(server.shutdown()).await;
}

/// A store that does nothing before it is told to, and tells the order.
struct Gated {
    inner: FileStore,
    gate: mpsc::Receiver<()>,
    asked: Arc<Mutex<Vec<VmId>>>,
}

impl Store for Gated {
    fn id(&self) -> Result<StoreId, StoreError> {
        self.inner.id()
    }

    fn load(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        // It stays open once its other end is gone.
        let _ = self.gate.recv();
        self.asked.lock().unwrap().push(vm.clone());
        self.inner.load(vm)
    }

    fn execute(&mut self, vm: &VmId, request: &Request) -> Result<Outcome, StoreError> {
        self.inner.execute(vm, request)
    }

    fn list(&self) -> Result<Vec<(VmId, Record)>, StoreError> {
        self.inner.list()
    }
}

/// Lets all tasks of this thread do what they can.
async fn settle() {
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn who_asks_without_end_keeps_nobody_waiting() {
    let cluster = Cluster::new();
    let inner = FileStore::open(&path_of(&cluster.dir, "register")).unwrap();
    let (open, gate) = mpsc::channel();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let store = Gated { inner, gate, asked: asked.clone() };
    let (identity, options) = (cluster.identity("arbiter"), long_lived());
    let server =
        ArbiterServer::serve(ANYWHERE, &identity, &options, vec![Box::new(store)]).unwrap();
    let ask = |name: &'static str, of: &'static str| {
        let options = Options { request_timeout: Duration::from_secs(100), ..long_lived() };
        let endpoint = Arc::new(cluster.endpoint_at(name, ANYWHERE, &options));
        let arbiters = vec![(node("arbiter"), server.local_address())];
        let client = Arc::new(ArbiterClient::new(endpoint, arbiters));
        move || {
            let client = client.clone();
            tokio::spawn(async move { client.load(&vm(of)).await })
        }
    };
    let mut loads = Vec::new();
    for _ in 0..4 {
        let load = ask("a", "much");
        loads.extend((0..16).map(|_| load()));
    }
    settle().await;
    loads.push(ask("b", "little")());
    settle().await;
    drop(open);
    for load in loads {
        assert_eq!(within(load).await.unwrap().unwrap(), None);
    }
    let asked = asked.lock().unwrap();
    let place = asked.iter().position(|name| *name == vm("little")).unwrap();
    assert!(place <= 8, "{place} others came first");
}
