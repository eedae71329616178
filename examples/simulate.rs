//! The simulated upstream on an address of your choice: `cargo run --example simulate --features simulator -- ADDR`.
//! Prints its address once it listens; ends on SIGINT, or when its standard input ends, as it does when the test that
//! started it is gone.
#![allow(clippy::print_stdout, reason = "an example's own output")]

use std::io::{Read, stdin};

use kiro_messages::simulator::Simulator;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let simulator = Simulator::bind(addr.parse()?)?;
    println!("http://{}", simulator.addr());

    let (alive, orphaned) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ended = stdin().read_to_end(&mut Vec::new());
        drop(alive);
    });
    simulator
        .serve_until(async {
            tokio::select! {
                _orphaned = orphaned => {}
                _interrupted = tokio::signal::ctrl_c() => {}
            }
        })
        .await?;
    Ok(())
}
