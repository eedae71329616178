//! Kept connections that are dead, and connections that are opened ahead of need (K67, K69, K143).

use std::sync::Mutex;

use jiff::Timestamp;
use kiro_messages::proto::kiro::route::{Operation, Shape};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::*;

/// How the other side ends a connection that has idled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Close,
    Reset,
    /// It takes the request, and closes without an answer.
    Unanswered,
}

/// A server whose first connection ends so long after its first answer.
async fn dies(death: Death, age: Duration) -> (String, Arc<AtomicUsize>) {
    let counted = Arc::<AtomicUsize>::default();
    let count = counted.clone();
    let url = serve(move |connection, mut socket| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut dies_at = None;
            loop {
                let end = async {
                    match dies_at {
                        Some(at) if death != Death::Unanswered => sleep_until(at).await,
                        _ => std::future::pending().await,
                    }
                };
                tokio::select! {
                    read = read_request(&mut socket) => if !read { return },
                    () = end => {
                        if death == Death::Reset {
                            socket.set_zero_linger().unwrap();
                        }
                        return;
                    }
                }
                if dies_at.is_some() && death == Death::Unanswered {
                    return;
                }
                if socket.write_all(EMPTY.as_bytes()).await.is_err() {
                    return;
                }
                if connection == 0 {
                    dies_at = Some(Instant::now() + age);
                }
            }
        }
    })
    .await;
    (url, counted)
}

/// The request goes out before, in the moment of, and after the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_dies_at_any_age_fails_no_request_k67_k69() {
    let mut cases = JoinSet::new();
    for death in [Death::Close, Death::Reset, Death::Unanswered] {
        for age in [0, 1, 5, 50, 500, 900, 1_500, 2_000, 2_900, 2_999] {
            for late in [0, 0, 0, 1, 20] {
                cases.spawn(async move {
                    let age = Duration::from_millis(age);
                    let (url, connections) = dies(death, age).await;
                    let upstream = upstream(&[("upstreamKeepIdleMs", "3000")]);
                    ask(&upstream, &url, None, Bytes::new()).await.unwrap();
                    sleep(age + Duration::from_millis(late)).await;
                    let answer = ask(&upstream, &url, None, Bytes::new()).await;
                    assert!(answer.is_ok(), "{death:?} at {age:?}, asked {late} ms later: {answer:?}");
                    assert!(connections.load(Ordering::Relaxed) <= 2);
                });
            }
        }
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

/// Two ways that differ in nothing but the proxy's user have a connection each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ahead_belongs_to_its_way_k143() {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let heard = asked.clone();
    let proxy = serve(move |connection, mut socket| {
        let heard = heard.clone();
        async move {
            while let Some(request) = request_text(&mut socket).await {
                heard.lock().unwrap().push(format!("{connection} {}", request.contains("b25lOg==")));
                socket.write_all(EMPTY.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let url = "http://q.us-east-1.localhost:9/generateAssistantResponse";
    let proxy = proxy.replace("/generateAssistantResponse", "");
    let (one, two) = (proxy.replace("//", "//one:@"), proxy.replace("//", "//two:@"));
    let upstream = Arc::new(upstream(&[]));
    let open = async |expected: usize| {
        let due = upstream.ahead(Timestamp::now());
        assert_eq!(due.len(), expected);
        for connection in due {
            connection.await;
        }
    };
    upstream.chosen(url, Some(&one));
    upstream.expects(|| panic!("one way is in use"));
    timeout(LIMIT, upstream.wanted()).await.expect("it rings");
    open(1).await;
    assert_eq!((upstream.connects(), upstream.connects_ahead(), upstream.idle_connections()), (0, (1, 0), 1));
    upstream.expects(|| None);
    open(0).await;
    ask(&upstream, url, Some(&two), Bytes::new()).await.unwrap();
    ask(&upstream, url, Some(&one), Bytes::new()).await.unwrap();
    ask(&upstream, url, None, Bytes::new()).await.unwrap_err();
    assert_eq!(*asked.lock().unwrap(), ["1 false", "0 true"]);
    assert_eq!((upstream.connects(), upstream.connects_ahead()), (1, (1, 0)));
}

/// Nobody waits for a connection ahead: what it meets is counted and marks nothing. And it is for open ways only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_ahead_marks_nothing_and_a_marked_way_is_left_alone_k143_k119() {
    let shut = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = shut.local_addr().unwrap();
    let url = format!("http://{address}/generateAssistantResponse");
    drop(shut);
    let due = |upstream: &Arc<Upstream>| {
        upstream.chosen(&url, None);
        upstream.expects(|| None);
        upstream.ahead(Timestamp::now())
    };
    let upstream = Arc::new(upstream(&[]));
    for connection in due(&upstream) {
        connection.await;
    }
    assert_eq!((upstream.connects_ahead(), upstream.is_cut_off(&url, None)), ((0, 1), false));
    assert!(due(&upstream).is_empty(), "it is left alone for a while");

    let upstream = Arc::new(self::upstream(&[]));
    for _ in 0..3 {
        ask(&upstream, &url, None, Bytes::new()).await.unwrap_err();
    }
    assert!(upstream.is_cut_off(&url, None));
    assert!(due(&upstream).is_empty(), "the way rests");

    let upstream = Arc::new(self::upstream(&[]));
    let host = address.to_string();
    let way = kiro_messages::policy::marks::Way { shape: Shape::Q, host: &host, region: "us-east-1" };
    let fault = Fault { status: Some(503), ..Fault::network("it is down") };
    for n in 0..20 {
        upstream.heard(Operation::Chat, &way, &format!("account-{n}"), Err(&fault), Timestamp::now());
    }
    assert!(upstream.hosts(Timestamp::now()).iter().any(|(_, circuit)| circuit.gauge() > 0));
    assert!(due(&upstream).is_empty(), "its circuit is open");
    assert_eq!(upstream.connects_ahead(), (0, 0));
}
