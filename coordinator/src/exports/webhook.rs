//! Sending a batch of events to a webhook, once: signed as Standard Webhooks 1.0 say, and what the receiver answers.
//!
//! ```text
//! webhook-id:        the batch's; the same when it is sent again
//! webhook-timestamp: seconds since 1970 of this try
//! webhook-signature: v1,BASE64(HMAC-SHA256(secret, ID.TIMESTAMP.BODY))
//! ```

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use reqwest::{Certificate, Client, StatusCode, Url};

use super::address::{self, BadUrl, PublicOnly};
use super::event::BATCH;
use crate::limits::{MAX_RETRY_AFTER, WEBHOOK_CONNECT, WEBHOOK_SECRET_BYTES, WEBHOOK_TIMEOUT};

/// Before a secret in base64.
const SECRET_PREFIX: &str = "whsec_";

/// What a webhook was given with cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadWebhook {
    #[error("the URL cannot be a webhook's: {0}")]
    Url(#[from] BadUrl),
    #[error(
        "the secret is not `whsec_` and the base64 of {} to {} bytes",
        WEBHOOK_SECRET_BYTES.start(),
        WEBHOOK_SECRET_BYTES.end()
    )]
    Secret,
    #[error("the file of certificates has none in PEM that can be used")]
    Authority,
    #[error("the client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
}

/// A receiver did not take a batch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undelivered {
    #[error("the receiver answers with status {}", status.as_u16())]
    Status {
        status: StatusCode,
        /// How long it wants to be left alone.
        after: Option<Duration>,
    },
    #[error("{0}")]
    Broken(String),
}

/// The bytes of a secret as people give it.
pub(crate) fn read_secret(text: &str) -> Result<Vec<u8>, BadWebhook> {
    let digits = text.trim().strip_prefix(SECRET_PREFIX);
    let bytes = digits.and_then(|digits| BASE64.decode(digits).ok());
    bytes
        .filter(|bytes| WEBHOOK_SECRET_BYTES.contains(&bytes.len()))
        .ok_or(BadWebhook::Secret)
}

/// Certificates that a receiver's may be signed by, beside the system's.
pub(crate) fn read_authorities(pem: &str) -> Result<Vec<Certificate>, BadWebhook> {
    if pem.is_empty() {
        return Ok(Vec::new());
    }
    let found = Certificate::from_pem_bundle(pem.as_bytes());
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or(BadWebhook::Authority)
}

/// A receiver of events.
#[derive(Clone)]
pub(crate) struct Webhook {
    client: Client,
    url: Url,
    secret: hmac::Key,
}

impl Webhook {
    pub(crate) fn new(
        url: &str,
        authorities: &str,
        secret: &[u8],
        private: bool,
    ) -> Result<Self, BadWebhook> {
        let url = address::read(url, private)?;
        let mut client = Client::builder()
            .https_only(true)
            .redirect(address::no_redirects())
            // One would be a way around what was looked at.
            .no_proxy()
            .connect_timeout(WEBHOOK_CONNECT)
            .timeout(WEBHOOK_TIMEOUT)
            .pool_max_idle_per_host(1)
            .tls_certs_merge(read_authorities(authorities)?);
        if !private {
            client = client.dns_resolver(PublicOnly);
        }
        Ok(Webhook {
            client: client.build()?,
            url,
            secret: hmac::Key::new(hmac::HMAC_SHA256, secret),
        })
    }

    /// Sends a batch; it is taken if the answer is 2xx. Of the answer nothing else is read.
    pub(crate) async fn send(
        &self,
        id: &str,
        now_ms: u64,
        body: Vec<u8>,
    ) -> Result<(), Undelivered> {
        let timestamp = (now_ms / 1000).to_string();
        let signature = self.signature(id, &timestamp, &body);
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, BATCH)
            .header(USER_AGENT, concat!("holm/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body);
        let answer = request.send().await.map_err(|error| {
            // The error itself names the URL, which may be a secret in part.
            Undelivered::Broken(why(&error.without_url()))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let after = answer.headers().get(RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.trim().parse().ok());
        let after = after.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
        Err(Undelivered::Status { status, after })
    }

    fn signature(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.secret);
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            context.update(part);
        }
        format!("v1,{}", BASE64.encode(context.sign()))
    }
}

/// An error with what it comes from.
fn why(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification of Standard Webhooks, computed anew with another implementation of HMAC.
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let url = "https://hooks.example.com/";
        let webhook = Webhook::new(url, "", &secret, false).unwrap();
        let signature = webhook.signature(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_long_enough_and_written_as_such() {
        let of = |bytes: usize| format!("whsec_{}\n", BASE64.encode(vec![7; bytes]));
        assert_eq!(read_secret(&of(24)).unwrap(), [7; 24]);
        assert!(read_secret(&of(64)).is_ok());
        for text in [
            of(23),
            of(65),
            BASE64.encode([7; 32]),
            "whsec_!".into(),
            String::new(),
        ] {
            assert!(
                matches!(read_secret(&text), Err(BadWebhook::Secret)),
                "{text}"
            );
        }
    }

    #[test]
    fn certificates_that_are_none_are_refused() {
        for pem in [
            "x",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let secret = [7; 32];
            let bad = Webhook::new("https://hooks.example.com/", pem, &secret, false);
            assert!(bad.is_err(), "{pem}");
        }
    }
}
