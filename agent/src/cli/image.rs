//! `headstart image`: the images of functions.

use std::env;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use headstart_config::image::{IMAGE_DIR, ImageName, ImageRecord, ImageStore};
use headstart_image::{Collected, Step, Store, list};
use nix::sys::resource::{Resource, setrlimit};

use super::output;

/// Memory of a pull: a registry that answers without end must not take that of the node.
const MEMORY_MAX: u64 = 2 << 30;

/// Digits of an image's ID that are shown.
const ID_DIGITS: usize = 12;

/// `headstart image`.
#[derive(Debug, clap::Args)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
    /// Where images are: `image_dir` of [agent].
    #[arg(long, global = true, value_name = "DIR", default_value = IMAGE_DIR)]
    image_dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum ImageCommand {
    /// Fetch an image, check it and unpack it. What its name stood for before stays until `gc`.
    Pull(NameArgs),
    /// Show the images of the store.
    List,
    /// Forget a name, and remove its image unless it is in use.
    Remove(NameArgs),
    /// Remove the images without a name that are not in use.
    Gc,
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    /// As in `image` of a function: REGISTRY/NAME:TAG, NAME@sha256:..., oci:DIR, or the file of an archive with its prefix.
    name: String,
}

/// Does what is asked for.
///
/// # Errors
/// When it cannot be done: with what to do.
pub(super) fn run(args: ImageArgs) -> anyhow::Result<ExitCode> {
    let images = ImageStore(args.image_dir);
    let text = match args.command {
        ImageCommand::Pull(named) => pull(images, &named.name()?)?,
        ImageCommand::List => table(&list(&images)?, SystemTime::now()),
        ImageCommand::Remove(named) => said(&Store::open(images)?.remove(&named.name()?)?),
        ImageCommand::Gc => said(&Store::open(images)?.collect()?),
    };
    output::show(&text)?;
    Ok(ExitCode::SUCCESS)
}

impl NameArgs {
    fn name(&self) -> anyhow::Result<ImageName> {
        let here = env::current_dir().context("the current directory")?;
        ImageName::parse_in(&self.name, &here).map_err(|message| anyhow!("{:?} {message}", self.name))
    }
}

fn pull(images: ImageStore, name: &ImageName) -> anyhow::Result<String> {
    setrlimit(Resource::RLIMIT_DATA, MEMORY_MAX, MEMORY_MAX)?;
    let store = Store::open(images)?;
    let shown = stderr().is_terminal();
    let mut progress = |step: Step| {
        let (doing, layer, of) = match step {
            Step::Fetching(layer, of) => ("fetching", layer, of),
            Step::Unpacking(layer, of) => ("unpacking", layer, of),
        };
        if shown {
            // Its reader may be gone, which is no reason to end.
            let _ = write!(stderr(), "\r\x1b[K{doing} layer {layer} of {of}");
        }
    };
    let pulled = store.pull(name, &mut progress);
    if shown {
        let _ = write!(stderr(), "\r\x1b[K");
    }
    let (record, changed) = pulled?;
    let ImageRecord { name, digest, .. } = &record;
    let next =
        if changed { "; `headstart reload` gives it to the functions that name it" } else { ", as before" };
    Ok(format!("{name}: {digest}, {}{next}\n", size(record.bytes)))
}

fn table(records: &[ImageRecord], now: SystemTime) -> String {
    let width = records.iter().map(|record| record.name.len()).max().unwrap_or(0).max("NAME".len());
    let mut text = format!("{:width$}  {:ID_DIGITS$}  {:>10}  PULLED\n", "NAME", "ID", "SIZE");
    for record in records {
        let pulled = SystemTime::UNIX_EPOCH + Duration::from_secs(record.pulled);
        let age = ago(now.duration_since(pulled).unwrap_or_default());
        let id: String = record.id.chars().take(ID_DIGITS).collect();
        text += &format!("{:width$}  {id}  {:>10}  {age}\n", record.name, size(record.bytes));
    }
    text
}

fn ago(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit} ago")
}

fn size(bytes: u64) -> String {
    let tenths = (bytes * 10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

fn said(collected: &Collected) -> String {
    let Collected { removed, bytes, used } = collected;
    let mut text = format!("{} images removed, {}\n", removed.len(), size(*bytes));
    for id in used {
        let id: String = id.chars().take(ID_DIGITS).collect();
        text += &format!(
            "{id} stays: a function or an instance uses it. Run `headstart reload`, then `headstart image gc`\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_what_each_name_stands_for() {
        let record = ImageRecord {
            name: "r.example/app:1".into(),
            digest: "sha256:1".into(),
            id: "0123456789abcdef".into(),
            command: Vec::new(),
            env: Vec::new(),
            user: String::new(),
            workdir: String::new(),
            ports: Vec::new(),
            stop_signal: String::new(),
            volumes: Vec::new(),
            bytes: 50 << 20,
            pulled: 1000,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + 7300);
        let text = table(&[record], now);
        assert_eq!(
            text,
            "NAME             ID                  SIZE  PULLED\nr.example/app:1  0123456789ab    50.0 MiB  2 h ago\n"
        );
        let used = Collected { removed: vec!["a".into()], bytes: 1 << 19, used: vec!["b".into()] };
        assert!(said(&used).starts_with("1 images removed, 0.5 MiB\nb stays: "));
    }
}
