//! A broker that wants TLS in both directions, and a password.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{at, bus, record, topic};
use logmesh_bus::{Bus, BusError, Cleanup, NextOffset, TopicSpec};
use logmesh_bus_kafka::{Mechanism, Sasl};
use logmesh_runtime::Tls;
use logmesh_testing::{Folder, servers};
use logmesh_types::unit::Span;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Certificates in a folder: the authority's, the broker's and the client's.
struct Certificates {
    folder: Folder,
}

impl Certificates {
    fn new() -> Self {
        let folder = Folder::new();
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate for self-signed whose name is its issuer's.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let authority = params.self_signed(&authority_key).unwrap();
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, authority_key);
        for (name, host) in [("broker", "127.0.0.1"), ("client", "logmesh")] {
            let key = KeyPair::generate().unwrap();
            let signed = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
            std::fs::write(folder.join(format!("{name}.pem")), signed.pem()).unwrap();
            std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
            let both = format!("{}{}", key.serialize_pem(), signed.pem());
            std::fs::write(folder.join(format!("{name}-both.pem")), both).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn tls(&self) -> Tls {
        Tls {
            enabled: true,
            ca_file: Some(self.path("ca.pem")),
            cert_file: Some(self.path("client.pem")),
            key_file: Some(self.path("client.key")),
        }
    }

    /// The broker's properties.
    fn config(&self) -> PathBuf {
        let show = |path: &Path| path.display().to_string();
        let login = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        let text = format!(
            "listener.security.protocol.map=CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT\n\
             ssl.keystore.type=PEM\nssl.keystore.location={}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={}\nlistener.name.client.ssl.client.auth=required\n\
             sasl.enabled.mechanisms=PLAIN\nsasl.mechanism.inter.broker.protocol=PLAIN\n\
             listener.name.client.plain.sasl.jaas.config={login} username=\"broker\" password=\"b\" \
             user_broker=\"b\" user_logmesh=\"right\" user_guest=\"g\";\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:broker;User:logmesh;User:ANONYMOUS\n",
            show(&self.path("broker-both.pem")),
            show(&self.path("ca.pem")),
        );
        std::fs::write(self.path("server.properties"), text).unwrap();
        self.path("server.properties")
    }
}

fn sasl(password: &str) -> Option<Sasl> {
    Some(Sasl { mechanism: Mechanism::Plain, user: "logmesh".to_owned(), password: password.to_owned() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_has_certificate_and_password_gets_in() {
    let certificates = Certificates::new();
    let config = certificates.config().display().to_string();
    let start = move || servers::Kafka::start(&[("KAFKA_CONFIG", &config)]);
    let server = tokio::task::spawn_blocking(start).await.unwrap();
    let address = server.address();

    let good = bus(&address, |settings| (settings.tls, settings.sasl) = (certificates.tls(), sasl("right")));
    let topic = topic(&good, "t", 1).await;
    good.append(&topic, record("k", "v")).await.unwrap().await.unwrap();
    assert_eq!(good.read(&at(&topic, 0), NextOffset(0), 1).await.unwrap()[0].value, "v");

    // Who may come in and do nothing: that's no outage, and isn't tried for ever.
    let guest = bus(&address, |settings| {
        (settings.tls, settings.sasl) = (certificates.tls(), sasl("g"));
        settings.sasl.as_mut().unwrap().user = "guest".to_owned();
    });
    let refused = |error: BusError| assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
    let outcome = match guest.append(&topic, record("k", "v")).await {
        Ok(append) => append.await,
        Err(error) => Err(error),
    };
    refused(outcome.unwrap_err());
    let cleanup = Cleanup::Delete { max_age: None, max_bytes: None };
    let spec = TopicSpec { name: "new".parse().unwrap(), partitions: 1, cleanup };
    refused(guest.ensure_topic(&spec).await.unwrap_err());

    let without = Tls { cert_file: None, key_file: None, ..certificates.tls() };
    let refused = [
        (certificates.tls(), sasl("wrong"), "uthentication failed"),
        (certificates.tls(), None, ""),
        (without, sasl("right"), "certificate"),
        (Tls::default(), None, ""),
    ];
    let address = &address;
    let refused = refused.map(|(tls, sasl, why)| async move {
        let bad = bus(address, |settings| {
            settings.request_timeout = Span(Duration::from_secs(3));
            (settings.tls, settings.sasl) = (tls, sasl);
        });
        let error = bad.topics().await.unwrap_err();
        assert!(error.retryable() && error.to_string().contains(why), "{error}");
        assert!(bad.ping().await.is_err());
    });
    futures::future::join_all(refused).await;
}
