//! A sign-in with a browser: the pages that it opens, and how its answer comes back, by a listener on this machine or
//! an address that a person pastes (K97, K98).
//!
//! # Cancellation
//! Dropping what waits here closes the port and every connection; nothing was kept.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, LOCATION, REFERRER_POLICY};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::sign_in::{Begun, SignInClient, SignedIn};
use crate::config::Config;
use crate::proto::kiro::portal::{self, Miss, Organisation, PORTS, Proof, RETURN_PATHS, Returned};
use crate::proto::kiro::sign_in::SignInError;

/// Browsers open some connections in advance; connections beyond this number wait.
const MOST_CONNECTIONS: usize = 32;
/// A connection that says nothing for this long is closed.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// The longest time to send the last page to the browser.
const LAST_PAGE: Duration = Duration::from_secs(2);

/// The sign-in ends after this many pasted lines.
const MOST_PASTES: u32 = 3;

/// How a page is opened, and how its answer comes back.
pub struct Browser<'a> {
    /// Shows a page's address to the person, or opens it.
    pub show: &'a mut (dyn FnMut(Shown<'_>) + Send),
    /// The answer that comes back.
    pub way: WayBack,
    /// The longest wait for the person. A code that has come back is exchanged even after that: it works only once.
    pub until: Instant,
}

/// A message to the person.
pub enum Shown<'a> {
    /// Open this.
    Page(&'a str),
    /// The pasted text isn't the expected address.
    NotThat(&'static str),
}

/// How a browser's answer comes back.
pub enum WayBack {
    /// The browser calls this machine. Its last call stays open until its page is decided.
    Listening(Listener, Option<Callback>),
    /// The person pastes the address at which the browser ended.
    Pasted(mpsc::Receiver<String>),
}

/// The portal's result.
pub enum Led {
    /// The person has signed in.
    Done(SignedIn),
    /// A device code waits for the person.
    Device(Begun),
}

impl Browser<'_> {
    fn port(&self) -> u16 {
        match &self.way {
            WayBack::Listening(listener, _) => listener.port,
            WayBack::Pasted(_) => PORTS[0],
        }
    }

    /// Opens a page, and waits for the answer that `read` takes.
    async fn visit<T>(&mut self, page: &str, read: impl Fn(&str) -> Result<T, Miss>) -> Result<T, SignInError> {
        match &mut self.way {
            WayBack::Listening(listener, open) => {
                match open.take() {
                    Some(call) => call.answer(Page::Next(page.to_owned())),
                    None => (self.show)(Shown::Page(page)),
                }
                loop {
                    let call = timeout_at(self.until, listener.next()).await.map_err(|_| SignInError::late())?;
                    match read(&call.target) {
                        Ok(answer) => {
                            *open = Some(call);
                            return Ok(answer);
                        }
                        Err(miss) => call.answer(Page::Missed(miss)),
                    }
                }
            }
            WayBack::Pasted(lines) => {
                (self.show)(Shown::Page(page));
                for _ in 0..MOST_PASTES {
                    let nothing = || SignInError::new("nothing_pasted", "no address was pasted");
                    let line = timeout_at(self.until, lines.recv()).await.map_err(|_| SignInError::late())?;
                    let line = line.ok_or_else(nothing)?;
                    match read(target_of(line.trim())) {
                        Ok(answer) => return Ok(answer),
                        Err(Miss::Elsewhere) => (self.show)(Shown::NotThat(
                            "that isn't it: the address begins with http://localhost:3128/ and holds a long query",
                        )),
                        Err(Miss::State) => {
                            (self.show)(Shown::NotThat("that address belongs to another sign-in, or isn't whole"));
                        }
                    }
                }
                Err(SignInError::new("wrong_paste", "what was pasted isn't the address at which the browser ended"))
            }
        }
    }

    async fn leave(self, page: Page) {
        if let WayBack::Listening(listener, open) = self.way {
            if let Some(call) = open {
                call.answer(page);
            }
            listener.close().await;
        }
    }
}

/// Path and query of a pasted address; any other line stays unchanged.
fn target_of(line: &str) -> &str {
    let starts = RETURN_PATHS.iter().filter_map(|path| line.find(path));
    line.get(starts.min().unwrap_or_default()..).unwrap_or(line)
}

/// Leads a person through Kiro's portal (K97), to a login or to a device code.
///
/// # Errors
/// There is no login; the error says why.
pub async fn sign_in(client: SignInClient, config: &Config, mut browser: Browser<'_>) -> Result<Led, SignInError> {
    let led = lead(client, config, &mut browser).await;
    let page = match &led {
        Ok(Led::Done(_)) => Page::Done,
        // The browser is open already: it is sent on to the page for the code.
        Ok(Led::Device(begun)) => Page::Next(begun.code.uri_complete.clone()),
        Err(_) => Page::Failed,
    };
    browser.leave(page).await;
    led
}

async fn lead(client: SignInClient, config: &Config, browser: &mut Browser<'_>) -> Result<Led, SignInError> {
    let (proof, port) = (fresh_proof(), browser.port());
    let page = portal::page(&config.portal_url, &proof, port);
    match browser.visit(&page, |target| portal::returned(target, &proof, port)).await?? {
        Returned::Social { who, code, redirect_uri } => {
            client.social_exchange(&who, &portal::social_exchange(&code, &redirect_uri, &proof)).await.map(Led::Done)
        }
        Returned::Aws { who } => client.begin(who).await.map(Led::Device),
        Returned::Organisation(organisation) => organisation_sign_in(client, config, browser, organisation).await,
    }
}

/// Signs in at the organisation's own provider (K98).
async fn organisation_sign_in(
    client: SignInClient,
    config: &Config,
    browser: &mut Browser<'_>,
    organisation: Organisation,
) -> Result<Led, SignInError> {
    let hosts = &config.external_idp_hosts;
    let refused = |error| SignInError::new("refused_host", error);
    hosts.check("issuer_url", &organisation.issuer_url).map_err(refused)?;
    let endpoints = client.discover(&portal::discovery_url(&organisation.issuer_url), hosts).await?;
    let (proof, port) = (fresh_proof(), browser.port());
    let page = portal::organisation_page(&endpoints, &organisation, &proof, port);
    let code = browser.visit(&page, |target| portal::organisation_returned(target, &proof)).await??;
    let form = portal::exchange_form(&organisation, &code, &proof, port);
    client.organisation_exchange(&organisation, &endpoints, form).await.map(Led::Done)
}

fn fresh_proof() -> Proof {
    // A version 4 id has 122 random bits from the system's generator.
    let random = || *uuid::Uuid::new_v4().as_bytes();
    let mut verifier = [0; 32];
    verifier[..16].copy_from_slice(&random());
    verifier[16..].copy_from_slice(&random());
    Proof::new(verifier, random())
}

/// The page that the browser shows, or the address that it goes on to.
pub enum Page {
    /// The browser's part is done; the terminal shows the rest.
    Done,
    /// The sign-in failed; the terminal says why.
    Failed,
    /// The next page.
    Next(String),
    /// Not the expected call.
    Missed(Miss),
}

/// Listens for the browser on the first free port of [`PORTS`], on loopback alone.
pub struct Listener {
    listener: TcpListener,
    port: u16,
    calls: (mpsc::Sender<Callback>, mpsc::Receiver<Callback>),
    connections: JoinSet<()>,
    closing: CancellationToken,
}

/// A browser's call: its path and query, and where its page goes.
pub struct Callback {
    /// Path and query.
    pub target: String,
    page: oneshot::Sender<Page>,
}

impl Callback {
    /// Sends the browser its page. A browser that has gone away gets nothing.
    pub fn answer(self, page: Page) {
        let _gone = self.page.send(page);
    }
}

impl Listener {
    /// # Errors
    /// Every port is taken.
    pub async fn bind() -> Result<Self, SignInError> {
        for port in PORTS {
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                let (connections, closing) = (JoinSet::new(), CancellationToken::new());
                return Ok(Self { listener, port, calls: mpsc::channel(MOST_CONNECTIONS), connections, closing });
            }
        }
        let ports = PORTS.map(|port| port.to_string()).join(", ");
        Err(SignInError::new(
            "no_port",
            format!(
                "the portal returns to one of the ports {ports} of this machine, and all are taken: free one, or use --paste"
            ),
        ))
    }

    /// The next call. The caller decides whether it is the expected one.
    pub async fn next(&mut self) -> Callback {
        loop {
            tokio::select! {
                Some(call) = self.calls.1.recv() => return call,
                Some(_) = self.connections.join_next() => {}
                Ok((stream, _)) = self.listener.accept(), if self.connections.len() < MOST_CONNECTIONS => {
                    self.connections.spawn(serve(stream, self.calls.0.clone(), self.closing.clone()));
                }
                // The system refuses a connection for now.
                else => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Closes the port; a page that is being sent still arrives.
    pub async fn close(self) {
        let Self { listener, mut connections, closing, .. } = self;
        drop(listener);
        closing.cancel();
        let last = async { while connections.join_next().await.is_some() {} };
        // A browser that doesn't read is left alone.
        let _late = tokio::time::timeout(LAST_PAGE, last).await;
    }
}

async fn serve(stream: TcpStream, calls: mpsc::Sender<Callback>, closing: CancellationToken) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let calls = calls.clone();
        async move { Ok::<_, Infallible>(response(page_of(request, &calls).await)) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(64 * 1024);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // When a connection breaks, the browser calls again.
    tokio::select! {
        _ended = connection.as_mut() => {}
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ended = connection.await;
        }
    }
}

async fn page_of(request: Request<hyper::body::Incoming>, calls: &mpsc::Sender<Callback>) -> Page {
    if request.method() != Method::GET {
        return Page::Missed(Miss::Elsewhere);
    }
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let (page, answer) = oneshot::channel();
    match calls.send(Callback { target, page }).await {
        Ok(()) => answer.await.unwrap_or(Page::Failed),
        Err(_) => Page::Failed,
    }
}

/// Static text, without anything from the query.
fn response(page: Page) -> Response<Full<Bytes>> {
    let (status, title, text) = match &page {
        Page::Done => {
            (StatusCode::OK, "Almost done", "You can close this page: the terminal goes on with the sign-in.")
        }
        Page::Failed => {
            (StatusCode::OK, "Not signed in", "You can close this page: the terminal says what went wrong.")
        }
        Page::Next(_) => (StatusCode::FOUND, "One more page", "The sign-in goes on at your organisation."),
        Page::Missed(Miss::State) => (
            StatusCode::BAD_REQUEST,
            "Another sign-in",
            "This address belongs to another sign-in than the one that waits here.",
        ),
        Page::Missed(Miss::Elsewhere) => (StatusCode::NOT_FOUND, "Nothing here", "A sign-in waits at another address."),
    };
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <body style=\"font:1.1rem/1.5 system-ui;margin:15vh auto;max-width:32rem\"><h1>{title}</h1><p>{text}</p></body></html>\n"
    );
    let mut response = Response::new(Full::new(Bytes::from(html)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let plain = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (CONNECTION, "close"),
    ];
    headers.extend(plain.map(|(name, value)| (name, http::HeaderValue::from_static(value))));
    if let Page::Next(address) = page {
        match http::HeaderValue::from_str(&address) {
            Ok(address) => drop(headers.insert(LOCATION, address)),
            Err(_) => return self::response(Page::Failed),
        }
    }
    response
}
