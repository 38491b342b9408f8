//! What an operator is told: a full etcd, refused users, wrong certificates,
//! values that nobody knows; and that compaction hurts nobody.

use std::{path::PathBuf, time::Duration};

use arbiter::{
    NodeId, Operation, Outcome, Record, Register, Request, Stamp, Store, StoreError, Term, VmId,
};
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, CompactionOptions, Permission, PermissionType, PutOptions,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use romulus_etcd::{Credentials, EtcdStore, MemberFault, Settings, SettingsError, TlsFiles};

use crate::cluster::{Cluster, PATIENCE, Shape, etcd_for, secret, wait_until};

fn vm() -> VmId {
    "web".parse().unwrap()
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn register(term: u64) -> Register {
    Register { term: Term::new(term), primary: node("a"), in_sync: [].into() }
}

/// Claims the VM, and then claims it again and again.
fn claim(term: u64) -> Request {
    let (expected, operation) = match term {
        1 => (None, Operation::Create),
        _ => (Some(register(term - 1)), Operation::Restart),
    };
    Request { caller: node("a"), expected, operation, stamp: Stamp::new(term) }
}

fn require_words(words: &str, expected: &[&str]) {
    for expected in expected {
        assert!(words.contains(expected), "`{expected}` is not in: {words}");
    }
}

#[test]
fn a_full_etcd_says_what_to_do_and_leaves_it_open_what_happened() {
    if !etcd_for("a_full_etcd_says_what_to_do_and_leaves_it_open_what_happened") {
        return;
    }
    let quota = ["--quota-backend-bytes".to_owned(), (2 << 20).to_string()].to_vec();
    let cluster = Cluster::shaped(Shape { members: 1, arguments: quota, tls: None });
    let mut store = cluster.store(&cluster.settings(&[0]));
    assert_eq!(store.execute(&vm(), &claim(1)).unwrap(), Outcome::Set(register(1)));
    let mut admin = cluster.admin(0);
    let mut fill = || {
        let options = PutOptions::new();
        cluster.runtime.block_on(admin.put("ballast", vec![7; 200 << 10], Some(options)))
    };
    wait_until("etcd is full", || fill().is_err());
    // Whether the very transaction that fills etcd happened is not for us to guess.
    let told = store.execute(&vm(), &claim(2)).unwrap_err();
    assert!(matches!(told, StoreError::Unknown { .. }), "{told:?}");
    let expected = ["is full", "database space exceeded", "defragment", "etcdctl alarm disarm"];
    require_words(&told.to_string(), &expected);
    let alarms = || -> Vec<MemberFault> {
        let members = cluster.runtime.block_on(store.members(PATIENCE));
        members.into_iter().flat_map(|member| member.health.unwrap().alarms).collect()
    };
    assert!(matches!(alarms()[..], [MemberFault::Full { .. }]), "{:?}", alarms());
    // What is in force can be read all the time.
    let record = Record { register: register(1), stamp: Stamp::new(1) };
    assert_eq!(store.load(&vm()).unwrap(), Some(record));
    // The operator does as told, and the same request goes through.
    cluster.runtime.block_on(async {
        let revision = admin.get("ballast", None).await.unwrap().header().unwrap().revision();
        // Physical: it is done when it is answered.
        let options = CompactionOptions::new().with_physical();
        admin.compact(revision, Some(options)).await.unwrap();
        admin.defragment().await.unwrap();
        let raised = admin.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
        for alarm in raised.alarms() {
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            let disarm = admin.alarm(AlarmAction::Deactivate, alarm.alarm(), Some(options));
            disarm.await.unwrap();
        }
    });
    assert_eq!(alarms(), []);
    let mut outcome = None;
    wait_until("the request is granted", || {
        outcome = store.execute(&vm(), &claim(2)).ok();
        outcome.is_some()
    });
    assert_eq!(outcome, Some(Outcome::Set(register(2))));
}

#[test]
fn compaction_hurts_nobody() {
    if !etcd_for("compaction_hurts_nobody") {
        return;
    }
    let cluster = Cluster::start(1);
    let mut store = cluster.store(&cluster.settings(&[0]));
    let mut admin = cluster.admin(0);
    for term in 1..20 {
        let set = Outcome::Set(register(term));
        assert_eq!(store.execute(&vm(), &claim(term)).unwrap(), set);
        cluster.runtime.block_on(async {
            let revision = admin.get("any", None).await.unwrap().header().unwrap().revision();
            admin.compact(revision, None).await.unwrap();
        });
        // A copy of what was asked before its revision was compacted.
        assert_eq!(store.execute(&vm(), &claim(term)).unwrap(), set);
        assert_eq!(store.list().unwrap().len(), 1);
    }
}

#[test]
fn a_value_that_no_arbiter_wrote_is_never_replaced() {
    if !etcd_for("a_value_that_no_arbiter_wrote_is_never_replaced") {
        return;
    }
    let cluster = Cluster::start(1);
    let mut store = cluster.store(&cluster.settings(&[0]));
    let mut admin = cluster.admin(0);
    let key = "/romulus/vm/web";
    for (value, expected) in [
        ("", "does not begin with `romulus-register 2`"),
        ("romulus-register 3 {}", "version \"3\", this arbiter reads 2"),
        ("romulus-register 2 {\"register\":7}", "expected struct Register"),
    ] {
        cluster.runtime.block_on(admin.put(key, value, None)).unwrap();
        let told = store.execute(&vm(), &claim(1)).unwrap_err();
        assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
        require_words(&told.to_string(), &[key, expected, "delete it"]);
        assert!(store.load(&vm()).is_err() && store.list().is_err());
        let kept = cluster.runtime.block_on(admin.get(key, None)).unwrap();
        assert_eq!(kept.kvs()[0].value(), value.as_bytes());
    }
}

/// Lets only the user `romulus` in, to the prefix only.
fn demand_users(cluster: &Cluster) {
    let mut admin = cluster.admin(0);
    cluster.runtime.block_on(async {
        admin.user_add("root", "root's", None).await.unwrap();
        admin.role_add("root").await.unwrap();
        admin.user_grant_role("root", "root").await.unwrap();
        admin.role_add("registers").await.unwrap();
        let keys = Permission::new(PermissionType::Readwrite, "/romulus/").with_prefix();
        admin.role_grant_permission("registers", keys).await.unwrap();
        admin.user_add("romulus", "secret", None).await.unwrap();
        admin.user_grant_role("romulus", "registers").await.unwrap();
        admin.auth_enable().await.unwrap();
    });
}

#[test]
fn users_are_told_apart() {
    if !etcd_for("users_are_told_apart") {
        return;
    }
    let mut cluster = Cluster::start(1);
    demand_users(&cluster);
    let password_file = cluster.folder.path().join("password");
    secret(&password_file, "secret\n");
    let credentials =
        |user: &str| Some(Credentials { user: user.into(), password_file: password_file.clone() });
    // etcd checks passwords with bcrypt, which takes its time.
    let settings = Settings { timeout: Duration::from_secs(5), ..cluster.settings(&[0]) };
    let known = Settings { credentials: credentials("romulus"), ..settings.clone() };

    let mut store = cluster.store(&known);
    assert_eq!(store.execute(&vm(), &claim(1)).unwrap(), Outcome::Set(register(1)));
    let refusals = [
        (settings.clone(), ["does not accept who the arbiter is", "user name is empty"]),
        (
            Settings { credentials: credentials("stranger"), ..settings.clone() },
            ["does not accept who the arbiter is", "authentication failed"],
        ),
        (
            Settings { prefix: "/other/".into(), ..known.clone() },
            ["does not let the arbiter's user in", "role grant-permission"],
        ),
    ];
    for (settings, expected) in refusals {
        let told = cluster.store(&settings).execute(&vm(), &claim(2)).unwrap_err();
        assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
        require_words(&told.to_string(), &expected);
    }
    // A member that was started again does not know the token that it gave.
    cluster.kill(0);
    cluster.begin(0);
    let mut outcome = None;
    wait_until("the arbiter is let in again", || {
        outcome = store.execute(&vm(), &claim(2)).ok();
        outcome.is_some()
    });
    assert_eq!(outcome, Some(Outcome::Set(register(2))));

    std::fs::set_permissions(&password_file, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    let told = EtcdStore::new(&known, cluster.runtime.handle().clone()).err().unwrap();
    assert!(matches!(told, SettingsError::Exposed { .. }), "{told:?}");
}

/// CA, certificate and key of 127.0.0.1, in `folder`.
fn certificates(folder: &std::path::Path, name: &str) -> [PathBuf; 3] {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let files = ["ca", "cert", "key"].map(|what| folder.join(format!("{name}.{what}.pem")));
    secret(&files[0], &authority.pem());
    secret(&files[1], &certificate.pem());
    secret(&files[2], &key.serialize_pem());
    files
}

#[test]
fn certificates_are_demanded_and_checked() {
    if !etcd_for("certificates_are_demanded_and_checked") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ours = certificates(folder.path(), "ours");
    let theirs = certificates(folder.path(), "theirs");
    let shape = Shape { members: 1, arguments: Vec::new(), tls: Some(ours.clone()) };
    let cluster = Cluster::shaped(shape);
    let with = |ca: &PathBuf, identity: Option<(PathBuf, PathBuf)>| Settings {
        tls: Some(TlsFiles { ca: ca.clone(), identity }),
        ..cluster.settings(&[0])
    };
    let [ca, certificate, key] = ours;
    let identity = Some((certificate.clone(), key.clone()));
    let mut store = cluster.store(&with(&ca, identity.clone()));
    wait_until("etcd decides", || store.execute(&vm(), &claim(1)).is_ok());

    let wrong_ca = with(&theirs[0], identity);
    let wrong_certificate = with(&ca, Some((theirs[1].clone(), theirs[2].clone())));
    let none = with(&ca, None);
    for settings in [wrong_ca.clone(), wrong_certificate, none] {
        let told = cluster.store(&settings).load(&vm()).unwrap_err();
        assert!(matches!(told, StoreError::Untouched { .. }), "{told:?}");
        require_words(&told.to_string(), &["cannot be talked to", "TLS files"]);
    }
    // What etcd thinks of ours comes after the handshake, if at all; what we
    // think of etcd's is known.
    let told = cluster.store(&wrong_ca).load(&vm()).unwrap_err();
    require_words(&told.to_string(), &["certificate"]);
    // A certificate where a key should be.
    let mixed = with(&ca, Some((certificate.clone(), certificate)));
    let told = EtcdStore::new(&mixed, cluster.runtime.handle().clone()).err().unwrap();
    assert!(matches!(told, SettingsError::Malformed { .. }), "{told:?}");
}
