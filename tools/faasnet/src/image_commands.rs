//! `faasnet image build` and `faasnet image inspect`: what they print. The work is `faasnet-image`'s.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use faasnet_image::{BuildError, BuildOptions, BuiltImage, ImageSummary, InspectRequest};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{ImageBuildArgs, ImageInspectArgs};
use crate::output;

/// Builds a layout from folders. Ctrl-C stops it and leaves nothing behind.
pub async fn build(args: ImageBuildArgs, json: bool) -> Result<()> {
    let options = BuildOptions { tag: args.tag.clone(), ..BuildOptions::default() };
    let image = build_with(args, options, !json && stderr().is_terminal()).await?;
    if json {
        return output::json(&image);
    }
    output::line(built_text(&image))
}

/// Shows what an image is made of.
pub async fn inspect(args: ImageInspectArgs, json: bool) -> Result<()> {
    let request = InspectRequest { reference: args.image, platform: args.platform, plain_http: args.plain_http };
    let summary = faasnet_image::inspect(&request).await.with_context(|| no_folder(&request.reference))?;
    if json {
        return output::json(&summary);
    }
    output::line(summary_text(&summary))
}

/// A bare word that is no folder is looked for at Docker Hub: said, since a misspelt folder looks the same.
fn no_folder(reference: &str) -> String {
    let host = reference.split('/').next().unwrap_or_default();
    match host.contains(['.', ':']) || host == "localhost" || Path::new(reference).exists() {
        true => format!("cannot look at {reference}"),
        false => format!("there is no folder {reference} here, and as an image of docker.io it cannot be read"),
    }
}

async fn build_with(args: ImageBuildArgs, mut options: BuildOptions, show_progress: bool) -> Result<BuiltImage> {
    let cancel = Arc::new(AtomicBool::new(false));
    options.cancel = Some(cancel.clone());
    let bar = if show_progress { spinner() } else { ProgressBar::hidden() };
    let (packed, shown) = (AtomicU64::new(0), bar.clone());
    options.progress = Some(Arc::new(move |bytes| {
        let packed = packed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        shown.set_message(format!("packed {}", output::bytes(packed)));
    }));
    let mut building = tokio::task::spawn_blocking(move || faasnet_image::build(&args.from, &args.out, &options));
    let built = tokio::select! {
        built = &mut building => built,
        _ = tokio::signal::ctrl_c() => {
            cancel.store(true, Ordering::Relaxed);
            building.await
        }
    };
    bar.finish_and_clear();
    let built: Result<BuiltImage, BuildError> = built.context("the build broke off")?;
    Ok(built?)
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

fn built_text(image: &BuiltImage) -> String {
    let rows = image.layers.iter().map(|layer| {
        vec![
            short(&layer.digest),
            output::bytes(layer.bytes),
            layer.files.to_string(),
            layer.from.display().to_string(),
        ]
    });
    let mut text = output::table(&["layer", ">size", ">files", "from"], rows);
    text += &format!("\n\n{}:{}  {}  {}", image.layout.display(), image.tag, output::bytes(image.bytes), image.digest);
    if !image.skipped.is_empty() {
        text += &format!("\nleft out {}: {}", image.skipped.len(), few(&image.skipped));
    }
    text
}

fn few(paths: &[impl AsRef<Path>]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = paths.iter().take(SHOWN).map(|path| path.as_ref().display().to_string()).collect();
    let more = if paths.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn summary_text(summary: &ImageSummary) -> String {
    let mut text =
        format!("reference  {}\nmanifest   {}\ntype       {}\n", summary.reference, summary.digest, summary.media_type);
    if let Some(platform) = &summary.platform {
        text += &format!("platform   {platform}\n");
    }
    if !summary.platforms.is_empty() {
        text += &format!("offered    {}\n", summary.platforms.join(", "));
    }
    text += &format!("size       {} in {} blobs\n\n", output::bytes(summary.total_bytes), summary.blobs.len());
    let rows = summary.blobs.iter().map(|blob| {
        let uses = if blob.uses > 1 { format!("{} uses", blob.uses) } else { String::new() };
        vec![short(&blob.digest), output::bytes(blob.bytes), blob.media_type.clone(), uses]
    });
    text + &output::table(&["blob", ">size", "type", ""], rows)
}

/// Enough of a digest to tell blobs apart.
fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}
