//! Keys that are made on the spot, and the JWTs that they sign.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

pub(crate) fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A part of a JWT, decoded.
pub(crate) fn part(jwt: &str, number: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split('.').nth(number).unwrap()).unwrap()).unwrap()
}

/// The JWK of a point on P-256: 4, x, y.
pub(crate) fn p256_jwk(point: &[u8]) -> Value {
    json!({ "kty": "EC", "crv": "P-256", "x": encoded(&point[1..33]), "y": encoded(&point[33..]) })
}

/// A P-256, Ed25519 or RSA key.
pub(crate) struct Key {
    pub(crate) algorithm: &'static str,
    pkcs8: Vec<u8>,
}

impl Key {
    pub(crate) fn es256() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Self { algorithm: "ES256", pkcs8: pkcs8.as_ref().to_vec() }
    }

    pub(crate) fn eddsa() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { algorithm: "EdDSA", pkcs8: pkcs8.as_ref().to_vec() }
    }

    /// Makes a key, or returns `None` without openssl: ring makes no RSA keys. On CI a missing openssl is a failure.
    pub(crate) fn rs256() -> Option<Self> {
        let Ok(made) = Command::new("openssl").args(["genpkey", "-algorithm", "RSA"]).output() else {
            assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
            println!("skipped: openssl is not installed");
            return None;
        };
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&made.stdout).unwrap();
        Some(Self { algorithm: "RS256", pkcs8: pkcs8.secret_pkcs8_der().to_vec() })
    }

    pub(crate) fn pem(&self) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(&self.pkcs8))
    }

    fn ecdsa(&self) -> EcdsaKeyPair {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.pkcs8, &SystemRandom::new()).unwrap()
    }

    fn ed25519(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_pkcs8(&self.pkcs8).unwrap()
    }

    fn rsa(&self) -> RsaKeyPair {
        RsaKeyPair::from_pkcs8(&self.pkcs8).unwrap()
    }

    pub(crate) fn public(&self) -> Vec<u8> {
        match self.algorithm {
            "ES256" => self.ecdsa().public_key().as_ref().to_vec(),
            "RS256" => self.rsa().public().as_ref().to_vec(),
            _ => self.ed25519().public_key().as_ref().to_vec(),
        }
    }

    /// The public key as a JWK (RFC 7517).
    pub(crate) fn jwk(&self, id: &str) -> Value {
        let mut jwk = match self.algorithm {
            "ES256" => p256_jwk(&self.public()),
            "RS256" => {
                let PublicKeyComponents::<Vec<u8>> { n, e } = self.rsa().public().into();
                json!({ "kty": "RSA", "n": encoded(n), "e": encoded(e) })
            }
            _ => json!({ "kty": "OKP", "crv": "Ed25519", "x": encoded(self.public()) }),
        };
        jwk["kid"] = json!(id);
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(self.algorithm);
        jwk
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let input = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let signature = match self.algorithm {
            "ES256" => self.ecdsa().sign(&SystemRandom::new(), input.as_bytes()).unwrap().as_ref().to_vec(),
            "RS256" => {
                let key = self.rsa();
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
                signature
            }
            _ => self.ed25519().sign(input.as_bytes()).as_ref().to_vec(),
        };
        format!("{input}.{}", encoded(signature))
    }
}
