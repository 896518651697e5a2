//! `man` and `completions`: the manual pages and the shells' scripts, made of what `--help` and the complete
//! configuration file say.

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::{EXIT_CODES, FIRST_STEPS};

const COMPLETE: &str = include_str!("../../config/complete.toml");

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Page {
    /// cnblogs-proxy(1): the commands
    Command,
    /// cnblogs-proxy.toml(5): the configuration file
    Config,
}

/// What stands in front of keys: their table, and what is said of it.
enum Part<'a> {
    Table { header: &'a str, words: Vec<&'a str> },
    Keys { keys: Vec<KeyEntry<'a>>, words: Vec<&'a str> },
}

#[derive(Clone, Copy)]
struct KeyEntry<'a> {
    name: &'a str,
    value: &'a str,
    is_example: bool,
}

/// The text of a page, for `man`.
pub(super) fn page(page: Page, command: Command) -> Vec<u8> {
    let mut text = Vec::new();
    let written = match page {
        Page::Command => of_command(command, &mut text),
        Page::Config => {
            text.extend(title("cnblogs-proxy.toml", 5, &command).into_bytes());
            of_file(COMPLETE).to_writer(&mut text)
        }
    };
    written.expect("a vector takes all that is written");
    text
}

/// The completion script for a shell.
pub(super) fn completions(shell: Shell, mut command: Command) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "cnblogs-proxy", &mut script);
    let script = String::from_utf8(script).expect("names and help are text");
    // clap_complete writes a dash in the program's name in two ways, so that bash finds nothing behind a command.
    script.replace("cnblogs__subcmd__proxy", "cnblogs__proxy")
}

fn of_command(command: Command, text: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone());
    text.extend(title("cnblogs-proxy", 1, &command).into_bytes());
    man.render_name_section(text)?;
    man.render_synopsis_section(text)?;
    man.render_description_section(text)?;
    man.render_options_section(text)?;

    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for one in command.get_subcommands() {
        let below: Vec<_> = one.get_subcommands().collect();
        if below.is_empty() {
            describe(&mut roff, one, one.get_name());
        }
        for nested in below {
            describe(&mut roff, nested, &format!("{} {}", one.get_name(), nested.get_name()));
        }
    }
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman(EXIT_CODES)]);
    roff.control("SH", ["EXAMPLES"]);
    for line in FIRST_STEPS.lines().skip(1) {
        let is_explanation = line.starts_with("    ");
        roff.control(if is_explanation { "IP" } else { "HP" }, []);
        roff.text([roman(line.trim_start())]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("cnblogs-proxy.toml"), roman("(5)")]);
    roff.to_writer(text)
}

fn describe(roff: &mut Roff, command: &Command, name: &str) {
    roff.control("TP", []);
    let mut usage = vec![bold(name)];
    for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
        usage.push(roman(" "));
        match argument.get_long() {
            Some("help") => drop(usage.pop()),
            Some(name) => usage.push(bold(format!("[--{name}]"))),
            None if argument.is_required_set() => {
                usage.push(italic(argument.get_id().as_str().to_uppercase()));
            }
            None => usage.push(italic(format!("[{}]", argument.get_id().as_str().to_uppercase()))),
        }
    }
    roff.text(usage);
    let about = command.get_long_about().or_else(|| command.get_about());
    for line in about.map(ToString::to_string).unwrap_or_default().lines() {
        match line {
            "" => drop(roff.control("IP", [])),
            line => drop(roff.text([roman(line)])),
        }
    }
}

fn of_file(file: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman("cnblogs-proxy.toml - configuration of cnblogs-proxy")]);
    roff.control("SH", ["DESCRIPTION"]);
    let (introduction, _how_to_read, rest) = beginning(file);
    roff.text([roman(sentences(&introduction))]);
    roff.control("PP", []);
    roff.text([roman("Read from: "), roman(super::CONFIG_HELP)]);
    roff.control("SH", ["KEYS"]);
    for part in parts(rest) {
        match part {
            Part::Table { header, words } => {
                roff.control("SS", [header]);
                roff.text([roman(sentences(&words))]);
            }
            Part::Keys { keys, words } => explain(&mut roff, &keys, &words),
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("cnblogs-proxy"), roman("(1)")]);
    roff
}

fn explain(roff: &mut Roff, keys: &[KeyEntry<'_>], words: &[&str]) {
    for (index, key) in keys.iter().enumerate() {
        roff.control(if index == 0 { "TP" } else { "TQ" }, []);
        let remark = if key.is_example { "   (an example; not set by default)" } else { "" };
        roff.text([bold(key.name), roman(format!(" = {}{remark}", key.value))]);
    }
    roff.text([roman(sentences(words))]);
}

/// Without a date: the version says it. Names of keys and files are not torn apart.
fn title(name: &str, section: u8, command: &Command) -> String {
    let version = command.get_version().unwrap_or_default();
    format!(".TH {name} {section} \"\" \"cnblogs-proxy {version}\"\n.nh\n.ad l\n")
}

fn sentences(words: &[&str]) -> String {
    words.join(" ")
}

/// The first two paragraphs, what the file is and how its form is to be read, and the rest.
fn beginning(file: &str) -> (Vec<&str>, Vec<&str>, &str) {
    let mut paragraphs = file.splitn(3, "\n\n");
    let mut words = || paragraphs.next().unwrap_or_default().lines().filter_map(comment).collect();
    let (first, second) = (words(), words());
    (first, second, paragraphs.next().unwrap_or_default())
}

/// The file without its beginning: keys that follow each other share the comment in front of them.
fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut words = Vec::new();
    for line in text.lines() {
        let (bare, is_example) = line.strip_prefix('#').map_or((line, false), |bare| (bare, true));
        if let Some(comment) = comment(line) {
            words.push(comment);
        } else if bare.starts_with('[') {
            parts.push(Part::Table { header: bare, words: std::mem::take(&mut words) });
        } else if let Some((name, value)) = bare.split_once(" = ") {
            let key = KeyEntry { name, value, is_example };
            match parts.last_mut() {
                Some(Part::Keys { keys, .. }) if words.is_empty() => keys.push(key),
                _ => parts.push(Part::Keys { keys: vec![key], words: std::mem::take(&mut words) }),
            }
        }
    }
    parts
}

fn comment(line: &str) -> Option<&str> {
    line.strip_prefix("# ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_complete_file_is_on_the_page() {
        let (introduction, how_to_read, rest) = beginning(COMPLETE);
        let mut count = introduction.len() + how_to_read.len();
        for part in parts(rest) {
            count += match part {
                Part::Table { words, .. } => 1 + words.len(),
                Part::Keys { keys, words } => keys.len() + words.len(),
            };
        }

        assert_eq!(count, COMPLETE.lines().filter(|line| !line.is_empty()).count());
        assert!(count > 90, "{count} lines");
    }
}
