//! Who we are, as Kafka wants to be told: PLAIN, and SCRAM (RFC 5802, 7677), where the broker proves itself as well.

use std::num::NonZeroU32;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use data_encoding::BASE64;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

use super::connection::Connection;
use super::wire::{Code, Reader, SASL_AUTHENTICATE, SASL_HANDSHAKE};
use crate::settings::{Mechanism, Sasl};

/// How often a password may have to be hashed. Kafka's own bounds are 4,096 and 16,384; who asks for less wants to guess it, who
/// asks for much more wants to keep us busy.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4_096..=1_000_000;

/// The hash functions of a SCRAM.
#[derive(Clone, Copy)]
struct Hash {
    mac: hmac::Algorithm,
    digest: &'static digest::Algorithm,
    derive: pbkdf2::Algorithm,
}

fn sha_256() -> Hash {
    Hash { mac: hmac::HMAC_SHA256, digest: &digest::SHA256, derive: pbkdf2::PBKDF2_HMAC_SHA256 }
}

fn sha_512() -> Hash {
    Hash { mac: hmac::HMAC_SHA512, digest: &digest::SHA512, derive: pbkdf2::PBKDF2_HMAC_SHA512 }
}

pub(super) async fn log_in(connection: &mut Connection, login: &Sasl) -> anyhow::Result<()> {
    let (name, hash) = match login.mechanism {
        Mechanism::Plain => ("PLAIN", None),
        Mechanism::ScramSha256 => ("SCRAM-SHA-256", Some(sha_256())),
        Mechanism::ScramSha512 => ("SCRAM-SHA-512", Some(sha_512())),
    };
    let answer = connection
        .ask(SASL_HANDSHAKE, |request| {
            request.string(name);
        })
        .await?;
    let code = Reader(&answer).code()?;
    ensure!(code == Code(0), "{name}: {code}");
    let Some(hash) = hash else {
        say(connection, format!("\0{}\0{}", login.user, login.password).as_bytes()).await?;
        return Ok(());
    };
    let mut nonce = [0; 24];
    SystemRandom::new().fill(&mut nonce).ok().context("no random numbers")?;
    let scram = Scram::new(hash, &login.user, &BASE64.encode(&nonce));
    let first = say(connection, scram.first().as_bytes()).await?;
    let (proof, signature) = scram.answer(&login.password, std::str::from_utf8(&first)?)?;
    let last = say(connection, proof.as_bytes()).await?;
    ensure!(last == signature.as_bytes(), "the broker doesn't know the password either");
    Ok(())
}

/// One message of ours, and the broker's answer.
async fn say(connection: &mut Connection, message: &[u8]) -> anyhow::Result<Bytes> {
    let answer = connection
        .ask(SASL_AUTHENTICATE, |request| {
            request.bytes(message);
        })
        .await?;
    let mut reader = Reader(&answer);
    let (code, text) = (reader.code()?, reader.string()?);
    ensure!(code == Code(0), "{code}: {text}");
    Ok(Bytes::copy_from_slice(reader.bytes()?))
}

/// Our side of a SCRAM.
struct Scram {
    hash: Hash,
    nonce: String,
    /// The first message without what stands for "no channel binding".
    bare: String,
}

impl Scram {
    fn new(hash: Hash, user: &str, nonce: &str) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self { hash, nonce: nonce.to_owned(), bare: format!("n={user},r={nonce}") }
    }

    fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// Our proof for the server's first message, and what the server has to say to it.
    fn answer(&self, password: &str, first: &str) -> anyhow::Result<(String, String)> {
        let mut parts = first.splitn(3, ',');
        let mut part =
            |name: &str| parts.next().and_then(|part| part.strip_prefix(name)).context("not what SCRAM says");
        let (nonce, salt, iterations) = (part("r=")?, part("s=")?, part("i=")?);
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            bail!("an answer to somebody else");
        }
        let salt = BASE64.decode(salt.as_bytes())?;
        let iterations = iterations.split(',').next().unwrap_or_default().parse()?;
        ensure!(ITERATIONS.contains(&iterations), "{iterations} iterations");
        let rounds = NonZeroU32::new(iterations).context("no iterations")?;

        let mut salted = vec![0; self.hash.digest.output_len()];
        pbkdf2::derive(self.hash.derive, rounds, &salt, password.as_bytes(), &mut salted);
        let client_key = self.mac(&salted, b"Client Key");
        let stored_key = digest::digest(self.hash.digest, client_key.as_ref());
        let without_proof = format!("c=biws,r={nonce}");
        let exchange = format!("{},{first},{without_proof}", self.bare);
        let client_signature = self.mac(stored_key.as_ref(), exchange.as_bytes());
        let proof: Vec<u8> =
            client_key.as_ref().iter().zip(client_signature.as_ref()).map(|(key, sign)| key ^ sign).collect();
        let server_key = self.mac(&salted, b"Server Key");
        let server_signature = self.mac(server_key.as_ref(), exchange.as_bytes());
        let expected = format!("v={}", BASE64.encode(server_signature.as_ref()));
        Ok((format!("{without_proof},p={}", BASE64.encode(&proof)), expected))
    }

    fn mac(&self, key: &[u8], message: &[u8]) -> hmac::Tag {
        hmac::sign(&hmac::Key::new(self.hash.mac, key), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677.
    #[test]
    fn sha_256_as_the_standard_has_it() {
        let scram = Scram::new(sha_256(), "user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (proof, signature) = scram.answer("pencil", first).unwrap();
        assert_eq!(
            proof,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(signature, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    /// There's no example in a standard; this one was worked out by Python's `hashlib`.
    #[test]
    fn sha_512_as_others_have_it() {
        let scram = Scram::new(sha_512(), "a,b=c", "abc");
        assert_eq!(scram.first(), "n,,n=a=2Cb=3Dc,r=abc");
        let (proof, signature) = scram.answer("pencil", "r=abcdef,s=c2FsdA==,i=4096").unwrap();
        assert_eq!(
            proof,
            "c=biws,r=abcdef,\
             p=rWPHUPkweHu8z9h71WnJnavhusqfLOzN+/1j6x1TrPRVI2ZatLSdUtS2JUimC7zg75eRT9rz8DCrnMRHy/ovVg=="
        );
        assert_eq!(
            signature,
            "v=QOhYSqEJkQjJmIe+1gu1YrDm3/gGLOtofXajGuqBshoW3mIdO9bpTEzdW0z73RyfWSYgLIzSPvEiqc+MG3IQig=="
        );
    }

    #[test]
    fn a_server_that_is_none_is_refused() {
        let scram = Scram::new(sha_256(), "user", "abc");
        for first in [
            "",
            "e=other-error",
            "r=abc,s=c2FsdA==,i=4096",
            "r=xyz123,s=c2FsdA==,i=4096",
            "r=abc123,s=???,i=4096",
            "r=abc123,s=c2FsdA==,i=1",
            "r=abc123,s=c2FsdA==,i=100000000",
            "r=abc123,s=c2FsdA==,i=",
        ] {
            assert!(scram.answer("password", first).is_err(), "{first}");
        }
    }
}
