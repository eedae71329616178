//! Makes pictures smaller that upstream may refuse (TR67): the only place where a picture is decoded.

use std::io::Cursor;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder as _, ImageReader, Limits, Rgb, RgbImage};
use tokio_util::sync::CancellationToken;

use super::job::RequestJob;
use crate::proto::messages::request::Request;
use crate::proto::translate::pictures::{Measured, Pictures};

/// Longest side of a picture that isn't large, in pixels.
const LONGEST_SIDE: u32 = 1_568;
/// Most characters of base64 of one that isn't large.
const MOST_CHARS: usize = 400_000;
/// Pixels of one picture that is decoded, and of all of a request: 4 bytes each at most.
const MOST_PIXELS: u64 = 50_000_000;
const MOST_PIXELS_OF_ALL: u64 = 200_000_000;
/// What a picture counts at least in that sum: many small ones are work too.
const LEAST_PIXELS: u64 = 1_000_000;
/// Bytes that one decoder may take.
const MOST_MEMORY: u64 = 256 * 1024 * 1024;
/// JPEG qualities, the next where the picture is still large.
const QUALITIES: [u8; 4] = [85, 70, 50, 30];
/// Requests of the process that decode at a time.
pub(super) const AT_A_TIME: usize = 2;

/// The large pictures that go out with the request, measured and fitted on a blocking thread. When the future is dropped,
/// the thread finishes its picture, keeps its place meanwhile, and begins no other.
pub(super) async fn large_pictures(job: &Arc<RequestJob>) -> Pictures {
    let sent = job.written.images.clone();
    if sent.is_empty() {
        return Pictures::default();
    }
    let Ok(place) = job.shared.picture_places.clone().acquire_owned().await else { return Pictures::default() };
    let job = job.clone();
    let dropped = CancellationToken::new();
    let _guard = dropped.clone().drop_guard();
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        let request = job.read();
        request.map(|request| measured(&request, &sent, || dropped.is_cancelled())).unwrap_or_default()
    });
    work.await.unwrap_or_else(|error| {
        // A decoder that panics costs the pictures, not the request.
        tracing::warn!(%error, "pictures could not be read");
        Pictures::default()
    })
}

fn measured(request: &Request<'_>, sent: &[String], ended: impl Fn() -> bool) -> Pictures {
    let mut left = MOST_PIXELS_OF_ALL;
    Pictures::of(request, sent, ended, |data| fit(data, &mut left))
}

/// Width, height, and a smaller JPEG where one can be made; none for a picture that isn't large. A broken one with few
/// characters counts as not large: upstream judges.
fn fit(data: &str, left: &mut u64) -> Option<Measured> {
    let large_text = data.len() > MOST_CHARS;
    let unreadable = || large_text.then_some((0, 0, None));
    let Ok(bytes) = STANDARD.decode(data) else { return unreadable() };
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_MEMORY);
    let Ok(mut reader) = ImageReader::new(Cursor::new(bytes)).with_guessed_format() else { return unreadable() };
    reader.limits(limits);
    let Ok(mut decoder) = reader.into_decoder() else { return unreadable() };
    let (width, height) = decoder.dimensions();
    if !large_text && width.max(height) <= LONGEST_SIDE {
        return None;
    }
    let pixels = u64::from(width) * u64::from(height);
    let cost = pixels.max(LEAST_PIXELS);
    if pixels > MOST_PIXELS || cost > *left {
        return Some((width, height, None));
    }
    *left -= cost;
    // A JPEG has no place for it once the picture is written anew.
    let orientation = decoder.orientation().ok();
    let fitted = DynamicImage::from_decoder(decoder).ok().and_then(|mut picture| {
        if let Some(orientation) = orientation {
            picture.apply_orientation(orientation);
        }
        if width.max(height) > LONGEST_SIDE {
            picture = picture.resize(LONGEST_SIDE, LONGEST_SIDE, FilterType::Triangle);
        }
        jpeg(&on_white(picture))
    });
    Some((width, height, fitted))
}

/// A JPEG knows no transparency.
fn on_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        Rgb([red, green, blue].map(|part| ((part * alpha + 255 * (255 - alpha)) / 255) as u8))
    })
}

/// In base64, in the best quality that isn't large.
fn jpeg(picture: &RgbImage) -> Option<String> {
    let mut written = None;
    for quality in QUALITIES {
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(picture).ok()?;
        let data = STANDARD.encode(bytes);
        let small = data.len() <= MOST_CHARS;
        written = Some(data);
        if small {
            break;
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use image::codecs::gif::GifEncoder;
    use image::{Frame, ImageFormat, Rgba, RgbaImage};

    use super::*;
    use crate::proto::messages::request::Purpose;

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn fitted(bytes: &[u8]) -> Option<Measured> {
        fit(&STANDARD.encode(bytes), &mut { MOST_PIXELS_OF_ALL })
    }

    fn seen(fitted: Option<Measured>) -> RgbImage {
        let bytes = STANDARD.decode(fitted.unwrap().2.unwrap()).unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap(), ImageFormat::Jpeg);
        image::load_from_memory(&bytes).unwrap().into_rgb8()
    }

    /// About this colour: JPEG isn't exact.
    fn is_near(picture: &RgbImage, (x, y): (u32, u32), wanted: [u8; 3]) -> bool {
        picture.get_pixel(x, y).0.iter().zip(wanted).all(|(seen, wanted)| seen.abs_diff(wanted) < 30)
    }

    fn halves(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, _| Rgb(if x < width / 2 { [255, 0, 0] } else { [0, 0, 255] }))
    }

    #[test]
    fn only_large_pictures_are_decoded_tr67() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP] {
            assert!(fitted(&encoded(halves(1_568, 8), format)).is_none(), "{format:?}");
            let large = encoded(halves(1_600, 8), format);
            let small = seen(fitted(&large));
            assert_eq!(small.dimensions(), (1_568, 8), "{format:?}");
            assert!(is_near(&small, (100, 4), [255, 0, 0]) && is_near(&small, (1_500, 4), [0, 0, 255]), "{format:?}");
        }
    }

    #[test]
    fn a_picture_of_many_characters_becomes_one_of_few_tr67() {
        let mut rng = fastrand::Rng::with_seed(1);
        let noise = RgbImage::from_fn(700, 700, |_, _| Rgb([rng.u8(..), rng.u8(..), rng.u8(..)]));
        let (width, height, small) = fitted(&encoded(noise, ImageFormat::Png)).unwrap();
        assert_eq!((width, height), (700, 700));
        assert!(small.unwrap().len() <= MOST_CHARS);
    }

    #[test]
    fn transparency_becomes_white_and_an_animation_its_first_picture_tr67() {
        let clear = RgbaImage::from_pixel(1_600, 4, Rgba([0, 0, 0, 0]));
        assert!(is_near(&seen(fitted(&encoded(clear, ImageFormat::Png))), (9, 1), [255, 255, 255]));
        let mut gif = Vec::new();
        let frames = [[0, 255, 0, 255], [255, 0, 0, 255]].map(|colour| RgbaImage::from_pixel(1_600, 4, Rgba(colour)));
        GifEncoder::new(&mut gif).encode_frames(frames.map(Frame::new)).unwrap();
        assert!(is_near(&seen(fitted(&gif)), (9, 1), [0, 255, 0]));
    }

    #[test]
    fn a_photo_is_turned_as_its_camera_says_tr67() {
        // An Exif block with one entry: orientation 6, a quarter turn clockwise.
        let exif = *b"\xff\xe1\x00\x22Exif\0\0MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00";
        let plain = encoded(halves(1_600, 40), ImageFormat::Jpeg);
        let turned = [&plain[..2], &exif[..], &plain[2..]].concat();
        let upright = seen(fitted(&turned));
        assert_eq!(upright.dimensions(), (39, 1_568));
        assert!(is_near(&upright, (20, 100), [255, 0, 0]) && is_near(&upright, (20, 1_500), [0, 0, 255]));
    }

    #[test]
    fn what_cant_be_fitted_is_not_decoded_tr67() {
        // A header that promises 400 megapixels.
        let mut bomb = encoded(halves(8, 8), ImageFormat::Png);
        bomb[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20]);
        let crc = crc32fast::hash(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&crc);
        assert_eq!(fitted(&bomb), Some((20_000, 20_000, None)));
        // Of many the first ones, until the sum is reached.
        let large = STANDARD.encode(encoded(halves(1_600, 10), ImageFormat::Png));
        let mut left = LEAST_PIXELS + 4_000;
        assert!(fit(&large, &mut left).unwrap().2.is_some());
        assert_eq!((fit(&large, &mut left), left), (Some((1_600, 10, None)), 4_000));
        // A request that has ended begins no other picture.
        let body = format!(
            r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":[{0},{0}]}}]}}"#,
            format_args!(
                r#"{{"type":"image","source":{{"type":"base64","media_type":"image/png","data":"{large}"}}}}"#
            )
        );
        let request = Request::parse(body.as_bytes(), Purpose::Messages).unwrap();
        let sent: Vec<_> = [0, 1].map(|n| format!("messages.0.content.{n}.source.data")).into();
        let looked = Cell::new(0);
        let ended = || looked.replace(looked.get() + 1) == 1;
        assert_eq!(measured(&request, &sent, ended).0.into_keys().collect::<Vec<_>>(), sent[..1]);
        assert_eq!(measured(&request, &sent, || false).0.len(), 2);
        // Cut off in the middle of its pixels: decoders may take what is there, and never panic.
        let whole = encoded(halves(1_600, 50), ImageFormat::Jpeg);
        for end in [2, 20, 200, 700, whole.len() - 2] {
            fitted(&whole[..end]);
        }
        assert_eq!(fitted(b"\x89PNG"), None);
        let broken = [b"\x89PNG".to_vec(), vec![0; 300_000]].concat();
        assert_eq!(fitted(&broken), Some((0, 0, None)));
    }
}
