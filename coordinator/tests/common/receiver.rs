//! A receiver of webhooks over TLS on loopback, which verifies every signature by the words of Standard Webhooks and
//! answers as it is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use holm_model::api::RecordEvent;
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the receiver does with a batch.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Takes it.
    Take,
    /// Answers so, and takes nothing.
    Refuse(&'static str),
    /// Takes it, and closes the connection in place of an answer.
    TakeInSilence,
}

/// What came, and what is to be done.
pub struct Inbox {
    pub manner: Manner,
    /// Batches that were taken, one after the other.
    pub taken: Vec<Vec<Value>>,
    /// Requests, taken or not.
    pub requests: usize,
    /// What was wrong with any of them.
    pub faults: Vec<String>,
}

pub struct Receiver {
    pub address: SocketAddr,
    /// Of its certificate.
    pub ca: String,
    pub secret: String,
    pub inbox: Arc<Mutex<Inbox>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let secret: [u8; 32] = std::array::from_fn(|index| index as u8);
        let receiver = Receiver {
            address: listener.local_addr().unwrap(),
            ca: made.cert.pem(),
            secret: format!("whsec_{}", BASE64.encode(secret)),
            inbox: Arc::new(Mutex::new(Inbox {
                manner: Manner::Take,
                taken: Vec::new(),
                requests: 0,
                faults: Vec::new(),
            })),
        };
        let inbox = receiver.inbox.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, inbox) = (acceptor.clone(), inbox.clone());
                tokio::spawn(async move {
                    // One that is not trusted is left by its caller.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, &secret, &inbox).await;
                    }
                });
            }
        });
        receiver
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/hook?x=1", self.address.port())
    }

    pub fn is_to(&self, manner: Manner) {
        self.inbox.lock().unwrap().manner = manner;
    }

    pub fn requests(&self) -> usize {
        self.inbox.lock().unwrap().requests
    }

    /// Ids of all events that were taken, in order, each as often as it came.
    pub fn ids(&self) -> Vec<String> {
        let inbox = self.inbox.lock().unwrap();
        assert!(inbox.faults.is_empty(), "{:?}", inbox.faults);
        let events = inbox.taken.iter().flatten();
        events
            .map(|event| event["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Each event once, by its id, as a receiver is to take them.
    pub fn records(&self) -> Vec<RecordEvent> {
        let mut seen = std::collections::BTreeSet::new();
        let inbox = self.inbox.lock().unwrap();
        let events = inbox.taken.iter().flatten();
        let new = events.filter(|event| seen.insert(event["id"].as_str().unwrap().to_owned()));
        new.map(|event| serde_json::from_value(event["data"].clone()).unwrap())
            .collect()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    secret: &[u8],
    inbox: &Mutex<Inbox>,
) {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break String::from_utf8(bytes.drain(..end + 4).collect()).unwrap();
            }
            match stream.read_buf(&mut bytes).await {
                Ok(read) if read > 0 => {}
                _ => return,
            }
        };
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        let length: usize = header("content-length").unwrap().parse().unwrap();
        while bytes.len() < length {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body: Vec<u8> = bytes.drain(..length).collect();
        let manner = {
            let mut inbox = inbox.lock().unwrap();
            inbox.requests += 1;
            if let Err(fault) = check(&head, &header, secret, &body) {
                inbox.faults.push(fault);
            }
            let manner = inbox.manner.clone();
            if !matches!(manner, Manner::Refuse(_)) {
                let events = serde_json::from_slice(&body).unwrap();
                inbox.taken.push(events);
            }
            manner
        };
        let answer = match manner {
            Manner::Take => "204 No Content\r\n",
            Manner::Refuse(answer) => answer,
            Manner::TakeInSilence => return,
        };
        let answer = format!("HTTP/1.1 {answer}content-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn check(
    head: &str,
    header: &impl Fn(&str) -> Option<String>,
    secret: &[u8],
    body: &[u8],
) -> Result<(), String> {
    if !head.starts_with("POST /hook?x=1 HTTP/1.1\r\n") {
        return Err(format!("request line in {head}"));
    }
    if header("content-type").as_deref() != Some("application/cloudevents-batch+json") {
        return Err(format!("media type in {head}"));
    }
    let of = |name: &str| header(name).ok_or_else(|| format!("no {name}"));
    let (id, time) = (of("webhook-id")?, of("webhook-timestamp")?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seconds: u64 = time.parse().map_err(|_| format!("time {time}"))?;
    if seconds.abs_diff(now.as_secs()) > 300 {
        return Err(format!("time {time}"));
    }
    let signature = of("webhook-signature")?;
    let signature = signature.strip_prefix("v1,").ok_or("no v1 signature")?;
    let signature = BASE64
        .decode(signature)
        .map_err(|error| error.to_string())?;
    let signed = [id.as_bytes(), b".", time.as_bytes(), b".", body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::verify(&key, &signed, &signature).map_err(|_| "a wrong signature".to_owned())
}
