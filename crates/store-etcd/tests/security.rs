//! TLS with certificates of both sides, and users with passwords.

#![allow(clippy::unwrap_used)] // a test, its helpers too

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use logmesh_runtime::Tls;
use logmesh_store::{ConfigStore, Precondition, StoreError};
use logmesh_store_etcd::{EtcdStore, Settings};
use logmesh_testing::servers::{Etcd, Server};
use logmesh_testing::wait_for_async;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use support::{PATIENCE, next, put, put_surely};

/// An authority, and what it has signed, as PEM files.
struct Certificates {
    folder: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certificates = Self { folder: tempfile::tempdir().unwrap(), authority };
        std::fs::write(certificates.path("ca.pem"), certificates.authority.pem()).unwrap();
        certificates.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
        certificates.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
        certificates
    }

    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        // etcd's own gateway calls the server with the server's certificate.
        params.extended_key_usages = vec![usage, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn server(&self) -> Server {
        self.server_with(&[])
    }

    fn server_with(&self, env: &[(&str, &str)]) -> Server {
        let own = [
            ("ETCD_CERT_FILE", &self.text("server.pem")[..]),
            ("ETCD_KEY_FILE", &self.text("server.key")),
            ("ETCD_TRUSTED_CA_FILE", &self.text("ca.pem")),
            ("ETCD_CLIENT_CERT_AUTH", "true"),
        ];
        Etcd::start(&[&own, env].concat())
    }

    fn tls(&self) -> Tls {
        Tls {
            enabled: true,
            ca_file: Some(self.path("ca.pem")),
            cert_file: Some(self.path("client.pem")),
            key_file: Some(self.path("client.key")),
        }
    }

    fn settings(&self, server: &Server) -> Settings {
        Settings { tls: self.tls(), ..support::settings(&[server]) }
    }

    /// Runs etcdctl against the server.
    fn ctl(&self, server: &Server, args: &[&str]) {
        let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../backends/etcd/run");
        let mut command = Command::new(run);
        command.arg("ctl").args(args);
        command.env("ETCDCTL_ENDPOINTS", format!("https://{}", server.address()));
        command.env("ETCDCTL_CACERT", self.path("ca.pem"));
        command.env("ETCDCTL_CERT", self.path("client.pem")).env("ETCDCTL_KEY", self.path("client.key"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A user `mesh` who may do everything beneath `/mesh/` and nothing else.
    fn want_users(&self, server: &Server) {
        for args in [
            "user add root:wortel",
            "user grant-role root root",
            "user add mesh:wachtwoord",
            "role add mesh",
            "role grant-permission mesh --prefix=true readwrite /mesh/",
            "user grant-role mesh mesh",
            "auth enable",
        ] {
            self.ctl(server, &args.split(' ').collect::<Vec<_>>());
        }
    }
}

fn as_mesh(settings: &Settings, prefix: &str, password: &str) -> EtcdStore {
    let (user, password) = (Some("mesh".to_owned()), Some(password.to_owned()));
    EtcdStore::new(&Settings { prefix: prefix.to_owned(), user, password, ..settings.clone() }).unwrap()
}

fn refused(result: Result<(), StoreError>, by: &str) {
    let error = result.expect_err(by);
    assert!(
        matches!(error, StoreError::Unavailable { .. } | StoreError::Denied(_)) && error.to_string().contains(by),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_a_certificate() {
    let certificates = Certificates::new();
    let server = certificates.server();
    let good = certificates.settings(&server);
    let store = EtcdStore::new(&good).unwrap();
    let revision = put(&store, "/k", "1").await;
    assert_eq!(next(&mut store.watch("/k", logmesh_store::Revision(revision.0 - 1))).await.unwrap().revision, revision);

    let plain = EtcdStore::new(&support::settings(&[&server])).unwrap();
    refused(plain.ping().await, "etcd at 127.0.0.1");
    let strange = Tls { ca_file: None, ..good.tls.clone() };
    refused(EtcdStore::new(&Settings { tls: strange, ..good.clone() }).unwrap().ping().await, "certificate");
    let unknown = Tls { cert_file: None, key_file: None, ..good.tls.clone() };
    refused(EtcdStore::new(&Settings { tls: unknown, ..good.clone() }).unwrap().ping().await, "etcd at 127.0.0.1");
    let nowhere = Tls { ca_file: Some(certificates.path("nowhere.pem")), ..good.tls.clone() };
    assert!(EtcdStore::new(&Settings { tls: nowhere, ..good }).unwrap_err().to_string().contains("nowhere.pem"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_have_a_password_and_keep_to_their_prefix() {
    let certificates = Certificates::new();
    let mut server = certificates.server();
    let settings = certificates.settings(&server);
    refused(as_mesh(&settings, "/mesh/", "wachtwoord").ping().await, "authentication is not enabled");
    certificates.want_users(&server);

    let store = as_mesh(&settings, "/mesh/", "wachtwoord");
    store.ping().await.unwrap();
    let first = put(&store, "k", "1").await;
    let lease = store.grant_lease(PATIENCE).await.unwrap();
    store.txn(logmesh_store::Txn::new().put_leased("leased", "x", lease.id)).await.unwrap();
    store.keep_alive(lease.id).await.unwrap();
    assert_eq!(store.list("").await.unwrap().entries.len(), 2);
    refused(as_mesh(&settings, "/mesh/", "geraden").ping().await, "refuses this user");
    // Its certificate makes it a user whom etcd doesn't know.
    refused(EtcdStore::new(&settings).unwrap().ping().await, "refuses this user");
    let outside = as_mesh(&settings, "/other/", "wachtwoord");
    refused(outside.put("k", "1".into(), Precondition::None).await.map(|_| ()), "permission denied");
    match next(&mut outside.watch("", first)).await {
        Err(logmesh_store::WatchError::Lost(error)) => refused(Err(error), "permission denied"),
        other => panic!("{other:?}"),
    }

    // A started server knows none of the tokens that it gave before.
    server.kill();
    server.start_again();
    let second = put_surely(&store, "k", "2").await;
    server.kill();
    server.start_again();
    let mut changes = store.watch("k", first);
    let change = loop {
        match next(&mut changes).await {
            Ok(change) => break change,
            Err(_) => changes = store.watch("k", first),
        }
    };
    assert_eq!(change.revision, second);
    store.keep_alive(lease.id).await.unwrap();
}

/// Waits until one more token has ended, by what the server says of it.
async fn wait_for_an_end(server: &Server) {
    let ended = || std::fs::read_to_string(server.log()).unwrap().matches("deleted a simple token").count();
    let before = ended();
    wait_for_async("the end of a token", PATIENCE, async || match ended() {
        more if more > before => Ok(()),
        same => Err(format!("{same} have ended")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_watches_and_leases_outlive_their_tokens() {
    let certificates = Certificates::new();
    // A token that is not used for a second has ended then.
    let server = certificates.server_with(&[("ETCD_AUTH_TOKEN_TTL", "1"), ("ETCD_LOG_LEVEL", "debug")]);
    certificates.want_users(&server);
    let store = as_mesh(&certificates.settings(&server), "/mesh/", "wachtwoord");
    let first = put(&store, "k", "1").await;
    let lease = store.grant_lease(PATIENCE).await.unwrap();
    let mut changes = store.watch("k", first);
    let mut seen = put(&store, "k", "2").await;
    assert_eq!(next(&mut changes).await.unwrap().revision, seen);
    // Each is the first to meet the ended token.
    for call in 0..4 {
        wait_for_an_end(&server).await;
        match call {
            0 => store.keep_alive(lease.id).await.map(|_| ()).unwrap(),
            1 => assert_eq!(store.list("").await.unwrap().entries.len(), 1),
            2 => drop(next(&mut store.watch("k", first)).await.unwrap()),
            _ => drop(store.grant_lease(PATIENCE).await.unwrap()),
        }
        seen = put(&store, "k", &call.to_string()).await;
        assert_eq!(next(&mut changes).await.unwrap().revision, seen, "the watch that began with the first token");
    }
}
