//! Certificates: what is made, what is loaded, and with whom nobody talks.

mod cluster;

use std::{fs, os::unix::fs::PermissionsExt};

use cluster::{ANYWHERE, Cluster, TERM, hello, node, path_of, within};
use rcgen::{CertificateParams, Issuer, KeyPair};
use romulus_transport::{
    AcceptError, ArbiterServer, DialError, Identity, Options,
    identity::{
        IdentityError,
        pki::{self, Files, PkiError},
    },
};

fn load(cluster: &Cluster, certificate: &str, key: &str) -> Result<Identity, IdentityError> {
    let path = |name| path_of(&cluster.dir, name);
    Identity::load(&path("ca.pem"), &path(certificate), &path(key))
}

/// A certificate of the cluster's authority for `dns`, valid in the years
/// `from` to `to`.
fn forge(cluster: &Cluster, name: &str, dns: &[&str], from: i32, to: i32) -> Files {
    let authority = Files::of_authority(cluster.dir.path());
    let key = KeyPair::from_pem(&fs::read_to_string(authority.key).unwrap()).unwrap();
    let pem = fs::read_to_string(authority.certificate).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&pem, key).unwrap();
    let dns: Vec<String> = dns.iter().map(|dns| (*dns).to_owned()).collect();
    let mut params = CertificateParams::new(dns).unwrap();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    let key = KeyPair::generate().unwrap();
    let files = Files {
        certificate: path_of(&cluster.dir, &format!("{name}.pem")),
        key: path_of(&cluster.dir, &format!("{name}.key")),
    };
    fs::write(&files.certificate, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    files
}

#[test]
fn what_is_made_can_be_loaded_listed_and_is_not_overwritten() {
    let cluster = Cluster::new();
    let files = cluster.files("node-1");
    assert_eq!(cluster.identity("node-1").node(), &node("node-1"));
    let mode = fs::metadata(&files.key).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let before = fs::read(&files.key).unwrap();
    let again = pki::issue(cluster.dir.path(), &node("node-1"), 10, false);
    assert!(matches!(again, Err(PkiError::Exists(path)) if path == files.key));
    assert_eq!(fs::read(&files.key).unwrap(), before);
    pki::issue(cluster.dir.path(), &node("node-1"), 10, true).unwrap();
    assert_ne!(fs::read(&files.key).unwrap(), before);
    cluster.identity("node-1");
    let again = pki::create_authority(cluster.dir.path(), 10, false);
    assert!(matches!(again, Err(PkiError::Exists(_))));
    assert!(matches!(
        pki::issue(cluster.dir.path(), &node("ca"), 1, true),
        Err(PkiError::Reserved)
    ));
    assert!(matches!(pki::issue(cluster.dir.path(), &node("b"), 0, true), Err(PkiError::Days(0))));
    let listed = pki::list(cluster.dir.path()).unwrap();
    let [(_, ca), (_, leaf)] = &listed[..] else { panic!("{listed:?}") };
    assert!(ca.is_authority && ca.node.is_none() && ca.valid_now);
    assert_eq!((&leaf.node, leaf.is_authority), (&Some(node("node-1")), false));
    assert_eq!(leaf.issuer, ca.subject);
    assert_ne!(leaf.serial, ca.serial);
    let days = (ca.not_after_unix_s - leaf.not_after_unix_s) / 86_400;
    assert_eq!(days, 3640);
}

#[test]
fn every_unusable_file_is_named_with_its_remedy() {
    let cluster = Cluster::new();
    cluster.files("a");
    cluster.files("b");
    fs::write(path_of(&cluster.dir, "text.pem"), "no certificate").unwrap();
    let words = |certificate, key| load(&cluster, certificate, key).unwrap_err().to_string();
    assert!(words("none.pem", "a.key").contains("none.pem: make it with `romulus pki`"));
    assert!(words("a.pem", "none.key").contains("none.key"));
    assert!(words("text.pem", "a.key").contains("text.pem holds no certificate"));
    assert!(words("a.pem", "b.key").contains("b.key does not belong to certificate"));
    assert!(words("ca.pem", "ca.key").contains("ca.pem is no node's"));
    fs::set_permissions(path_of(&cluster.dir, "a.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(words("a.pem", "a.key").contains("(mode 640): run `chmod 600"));
    fs::set_permissions(path_of(&cluster.dir, "a.key"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path_of(&cluster.dir, "a.key"), "no key").unwrap();
    assert!(words("a.pem", "a.key").contains("a.key holds no private key"));
    forge(&cluster, "old", &["old.romulus.internal"], 2001, 2002);
    assert!(words("old.pem", "old.key").contains("not now: renew it"));
    forge(&cluster, "two", &["a.romulus.internal", "b.romulus.internal"], 2001, 2090);
    assert!(words("two.pem", "two.key").contains("two.pem is no node's"));
    forge(&cluster, "web", &["example.org"], 2001, 2090);
    assert!(words("web.pem", "web.key").contains("web.pem is no node's"));
    let other = Cluster::new();
    let stranger = other.files("a");
    let mixed =
        Identity::load(&path_of(&cluster.dir, "ca.pem"), &stranger.certificate, &stranger.key);
    assert!(matches!(mixed, Err(IdentityError::OtherAuthority { .. })), "{mixed:?}");
}

#[tokio::test]
async fn another_cluster_is_not_talked_to() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (a, b) = (ours.endpoint("a"), theirs.endpoint("b"));
    let (to, greeting) = (node("b"), hello());
    let dialled = a.dial(b.local_address(), &to, TERM, &greeting);
    let (dialled, accepted) = within(async { tokio::join!(dialled, b.accept()) }).await;
    let words = dialled.unwrap_err().to_string();
    assert!(words.contains("the peer's certificate: it was issued by another"), "{words}");
    let words = accepted.unwrap().unwrap_err().to_string();
    assert!(words.contains("did not accept this node's certificate"), "{words}");
}

#[tokio::test]
async fn a_caller_of_another_cluster_is_told_why() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let b = ours.endpoint("b");
    // Trusts our authority, shows a certificate of another one.
    let stranger = theirs.files("a");
    let raw = ours.raw_attempt(&stranger, b.local_address(), "b").await;
    let accepted = within(b.accept()).await.unwrap();
    assert!(matches!(&accepted, Err(AcceptError::Certificate { .. })), "{accepted:?}");
    let words = accepted.unwrap_err().to_string();
    assert!(words.contains("the peer's certificate"), "{words}");
    // To the client, the handshake may look complete before it is refused.
    let refused = match raw {
        Ok(connection) => within(connection.closed()).await,
        Err(error) => error,
    };
    assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{refused:?}");
}

#[tokio::test]
async fn another_node_than_the_expected_one_is_not_talked_to() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.endpoint("a"), cluster.endpoint("b"));
    let dialled = within(a.dial(b.local_address(), &node("c"), TERM, &hello())).await;
    assert!(matches!(&dialled, Err(DialError::Certificate { .. })), "{dialled:?}");
    let words = dialled.unwrap_err().to_string();
    assert!(words.contains("it is for another node") && words.contains("b.romulus"), "{words}");
}

#[tokio::test]
async fn an_expired_caller_is_not_talked_to() {
    let cluster = Cluster::new();
    let b = cluster.endpoint("b");
    let files = forge(&cluster, "old", &["old.romulus.internal"], 2001, 2002);
    let _raw = cluster.raw_attempt(&files, b.local_address(), "b").await;
    let words = within(b.accept()).await.unwrap().unwrap_err().to_string();
    assert!(words.contains("it has expired, or the clocks differ"), "{words}");
}

#[tokio::test]
async fn a_certificate_without_a_node_is_not_talked_to() {
    let cluster = Cluster::new();
    let b = cluster.endpoint("b");
    let files = forge(&cluster, "web", &["example.org"], 2001, 2090);
    let _raw = cluster.raw_attempt(&files, b.local_address(), "b").await;
    let accepted = within(b.accept()).await.unwrap();
    assert!(matches!(accepted, Err(AcceptError::NoNode { .. })), "{accepted:?}");
}

#[tokio::test]
async fn an_arbiter_is_no_backup() {
    let cluster = Cluster::new();
    let a = cluster.endpoint("a");
    let store = arbiter::FileStore::open(&path_of(&cluster.dir, "register")).unwrap();
    let identity = cluster.identity("arbiter");
    let server =
        ArbiterServer::serve(ANYWHERE, &identity, &Options::default(), vec![Box::new(store)])
            .unwrap();
    let (to, greeting) = (node("arbiter"), hello());
    let dialled = a.dial(server.local_address(), &to, TERM, &greeting);
    let dialled = within(dialled).await;
    assert!(matches!(dialled, Err(DialError::OtherProtocol { .. })), "{dialled:?}");
}
