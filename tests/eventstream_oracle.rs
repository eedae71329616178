//! K2: our frame decoder and encoder against `aws-smithy-eventstream`, on its encoder's output, on ours and on mutated
//! bytes. The fuzz target `frames` runs the same checks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[path = "../fuzz/entries/frames.rs"]
mod frames;

use aws_smithy_types::DateTime;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use bytes::Bytes;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_encoders_and_both_decoders_agree_k2(messages in prop::collection::vec(message(), 0..5), size in 1usize..300) {
        let wire: Vec<u8> = messages.iter().flat_map(frames::both_encoders).collect();
        let frames::Reading { frames: read, end } = frames::check(&wire, size);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(read, messages);
    }

    #[test]
    fn mutated_frames_are_judged_alike_k2(
        messages in prop::collection::vec(message(), 1..4),
        mutations in prop::collection::vec(mutation(), 1..6),
        repaired in any::<bool>(),
        size in 1usize..300,
    ) {
        let mut wire: Vec<u8> = messages.iter().flat_map(frames::both_encoders).collect();
        mutations.iter().for_each(|mutation| mutation.apply(&mut wire));
        if repaired {
            frames::repair(&mut wire, false);
        }
        frames::check(&wire, size);
    }

    #[test]
    fn the_fuzz_entry_takes_any_bytes(data in prop::collection::vec(any::<u8>(), 0..600)) {
        frames::run(&data);
    }
}

/// The same inputs at every run, many more of them.
#[test]
fn the_fuzz_entry_holds_for_fixed_seeds() {
    for seed in 0..3_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let len = random.usize(..400);
        let mut data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
        // Small numbers make lengths that fit, and types that exist.
        data.iter_mut().filter(|_| random.u8(..3) > 0).for_each(|byte| *byte %= 12);
        if let Some(mode) = data.first_mut() {
            *mode = seed as u8;
        }
        frames::run(&data);
    }
}

#[test]
fn the_fuzz_entry_holds_for_every_seed_file() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/frames");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files {
        frames::run(&std::fs::read(&file).unwrap());
    }
}

/// The shapes of the vectors that smithy publishes with its source.
#[test]
fn published_frame_shapes_agree() {
    let all = Message::new_from_parts(
        vec![
            Header::new("true", HeaderValue::Bool(true)),
            Header::new("false", HeaderValue::Bool(false)),
            Header::new("byte", HeaderValue::Byte(50)),
            Header::new("short", HeaderValue::Int16(20_000)),
            Header::new("int", HeaderValue::Int32(500_000)),
            Header::new("long", HeaderValue::Int64(50_000_000_000)),
            Header::new("bytes", HeaderValue::ByteArray(Bytes::from_static(b"some bytes"))),
            Header::new("str", HeaderValue::String("some str".into())),
            Header::new("time", HeaderValue::Timestamp(DateTime::from_secs(5_000_000))),
            Header::new("uuid", HeaderValue::Uuid(0xb79bc914_de21_4e13_b8b2_bc47e85b7f0b)),
        ],
        Bytes::from_static(b"some payload"),
    );
    let no_payload = Message::new_from_parts(all.headers().to_vec(), Bytes::new());
    let no_headers = Message::new(Bytes::from_static(b"another payload"));
    let wire: Vec<u8> = [&all, &no_payload, &no_headers].into_iter().flat_map(frames::both_encoders).collect();
    for size in 1..=wire.len() {
        let reading = frames::check(&wire, size);
        assert_eq!(reading.end, Ok(()));
        assert_eq!(reading.frames, [all.clone(), no_payload.clone(), no_headers.clone()]);
    }

    let good = frames::both_encoders(&Message::new_from_parts(
        vec![Header::new("foo", HeaderValue::String("bar".into()))],
        Bytes::from_static(b"payload"),
    ));
    let name_len = 12;
    let value_type = name_len + 1 + 3;
    let value_len = value_type + 2;
    let broken = [
        ("prelude checksum", 8, 0, false),
        ("message checksum", good.len() - 1, 0, false),
        ("header section over the frame", 7, 255, true),
        ("header section of one byte", 7, 1, true),
        ("name over the section", name_len, 200, true),
        ("name of no length, the rest garbage", name_len, 0, true),
        ("value type", value_type, 60, true),
        ("value over the section", value_len, 200, true),
        ("value that leaves a piece", value_len, 2, true),
    ];
    for (what, place, byte, repaired) in broken {
        let mut wire = good.clone();
        wire[place] = if repaired { byte } else { !wire[place] };
        if repaired {
            frames::repair(&mut wire, false);
        }
        let frames::Reading { frames: read, end } = frames::check(&wire, 1);
        assert!(read.is_empty() && end.is_err(), "{what}: {end:?}");
    }
}

#[test]
fn both_encoders_refuse_the_same() {
    let message = |name: usize, value: usize| {
        Message::new(Bytes::new())
            .add_header(Header::new("n".repeat(name), HeaderValue::String("v".repeat(value).into())))
    };
    for (name, value, accepted) in [(255, 32_767, true), (256, 1, false), (1, 32_768, false), (0, 0, true)] {
        assert_eq!(!frames::both_encoders(&message(name, value)).is_empty(), accepted, "{name} {value}");
    }
}

fn message() -> impl Strategy<Value = Message> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(any::<u8>(), 4_000..20_000),
    ];
    (prop::collection::vec((name(), value()), 0..6), payload).prop_map(|(headers, payload)| {
        Message::new_from_parts(headers.into_iter().map(|(name, value)| Header::new(name, value)).collect(), payload)
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just(":event-type".to_owned()), Just(String::new()), "\\PC{1,20}", "[a-z]{250,255}"]
}

fn value() -> impl Strategy<Value = HeaderValue> {
    prop_oneof![
        any::<bool>().prop_map(HeaderValue::Bool),
        any::<i8>().prop_map(HeaderValue::Byte),
        any::<i16>().prop_map(HeaderValue::Int16),
        any::<i32>().prop_map(HeaderValue::Int32),
        any::<i64>().prop_map(HeaderValue::Int64),
        prop::collection::vec(any::<u8>(), 0..50).prop_map(|bytes| HeaderValue::ByteArray(bytes.into())),
        "\\PC{0,30}".prop_map(|text| HeaderValue::String(text.into())),
        any::<i32>().prop_map(|millis| HeaderValue::Timestamp(DateTime::from_millis(millis.into()))),
        any::<u128>().prop_map(HeaderValue::Uuid),
    ]
}

/// One change of the bytes; places are taken modulo their length.
#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    Flip(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    Truncate(usize),
    Repeat(usize, usize),
}

impl Mutation {
    fn apply(&self, wire: &mut Vec<u8>) {
        let len = wire.len();
        if len == 0 {
            return;
        }
        match *self {
            Self::Set(place, byte) => wire[place % len] = byte,
            Self::Flip(place, bit) => wire[place % len] ^= 1 << (bit % 8),
            Self::Insert(place, byte) => wire.insert(place % len, byte),
            Self::Remove(place) => drop(wire.remove(place % len)),
            Self::Truncate(place) => wire.truncate(place % len),
            Self::Repeat(from, count) => wire.extend_from_within(from % len..len.min(from % len + count % 64)),
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // Half of the places lie in the first prelude and header section, where a change says most.
    let place = || prop_oneof![0usize..64, any::<usize>()];
    prop_oneof![
        3 => (place(), prop_oneof![0u8..12, any::<u8>()]).prop_map(|(place, byte)| Mutation::Set(place, byte)),
        3 => (place(), any::<u8>()).prop_map(|(place, bit)| Mutation::Flip(place, bit)),
        1 => (place(), any::<u8>()).prop_map(|(place, byte)| Mutation::Insert(place, byte)),
        1 => place().prop_map(Mutation::Remove),
        1 => any::<usize>().prop_map(Mutation::Truncate),
        1 => (place(), any::<usize>()).prop_map(|(from, count)| Mutation::Repeat(from, count)),
    ]
}
