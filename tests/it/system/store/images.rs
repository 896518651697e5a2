//! What a crash may leave on a disk: every state of a directory that the calls of a program allow, when what was
//! not synced may be missing, half done or done in another order. Nothing here touches a disk.
//!
//! A file has what was in it when it was last synced, and of each change since then nothing, all, or of a write some
//! first bytes, with or without zeros up to its end, or the bytes after some zeros. Names are those of the last sync of
//! the directory, and any of the changes since then; a rename is done or not.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// More changes than this without a sync are too many to combine.
const MOST_PENDING: usize = 8;

/// A call of the program on the directory, by file numbers that stay when names change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Create {
        name: String,
        file: usize,
    },
    Write {
        file: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: usize,
        length: usize,
    },
    Sync {
        file: usize,
    },
    Link {
        name: String,
        to: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        name: String,
    },
    SyncDirectory,
    /// The directory itself is made.
    MakeDirectory,
    /// The directory that it is in is synced.
    SyncParent,
    /// It changes nothing here.
    Other,
}

/// Files by name. Images share what they have in common.
pub(super) type Image = BTreeMap<String, Rc<[u8]>>;

type Names = BTreeMap<String, usize>;

#[derive(Default)]
struct Disk {
    contents: BTreeMap<usize, Content>,
    /// As the running program sees them.
    names: Names,
    durable_names: Names,
    pending: Vec<NameChange>,
}

#[derive(Default)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate { length: usize },
}

enum NameChange {
    Set { name: String, file: usize },
    Move { from: String, to: String, file: usize },
    Remove { name: String },
}

/// All that a crash may leave right after these calls. A write can be cut at every `grain` bytes.
pub(super) fn images(ops: &[Op], grain: usize) -> BTreeSet<Image> {
    let mut disk = Disk::default();
    ops.iter().for_each(|op| disk.apply(op));

    let variants: BTreeMap<usize, Vec<Rc<[u8]>>> = disk
        .contents
        .iter()
        .map(|(file, content)| (*file, content.variants(grain).into_iter().map(Rc::from).collect()))
        .collect();
    let all_names: BTreeSet<Names> =
        subsets(&disk.pending).map(|changes| after(&disk.durable_names, &changes)).collect();
    all_names.iter().flat_map(|names| filled(names, &variants)).collect()
}

impl Disk {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { name, file } => {
                self.contents.insert(*file, Content::default());
                self.set(name, *file);
            }
            Op::Write { file, at, bytes } => {
                self.content(*file).write(*at, bytes);
            }
            Op::Truncate { file, length } => {
                self.content(*file).pending.push(Change::Truncate { length: *length });
            }
            Op::Sync { file } => self.content(*file).sync(),
            Op::Link { name, to } => {
                let file = self.names[name];
                self.set(to, file);
            }
            Op::Rename { from, to } => {
                let file = self.names.remove(from).expect("what is renamed is there");
                self.names.insert(to.clone(), file);
                self.pending.push(NameChange::Move { from: from.clone(), to: to.clone(), file });
            }
            Op::Unlink { name } => {
                self.names.remove(name);
                self.pending.push(NameChange::Remove { name: name.clone() });
            }
            Op::SyncDirectory => {
                self.durable_names = self.names.clone();
                self.pending.clear();
            }
            Op::MakeDirectory | Op::SyncParent | Op::Other => {}
        }
    }

    fn content(&mut self, file: usize) -> &mut Content {
        self.contents.get_mut(&file).expect("a file is made before it is used")
    }

    fn set(&mut self, name: &str, file: usize) {
        self.names.insert(name.to_owned(), file);
        self.pending.push(NameChange::Set { name: name.to_owned(), file });
    }
}

impl Content {
    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// Writes that go on where the one before ended are one, which can be torn anywhere.
    fn write(&mut self, at: usize, bytes: &[u8]) {
        match self.pending.last_mut() {
            Some(Change::Write { at: before, bytes: written }) if *before + written.len() == at => {
                written.extend_from_slice(bytes);
            }
            _ => self.pending.push(Change::Write { at, bytes: bytes.to_vec() }),
        }
    }

    fn variants(&self, grain: usize) -> BTreeSet<Vec<u8>> {
        let mut variants = BTreeSet::new();
        for changes in subsets(&self.pending) {
            variants.insert(self.with(&changes, None));
            for (number, change) in changes.iter().enumerate() {
                let torn = change.torn(grain);
                variants.extend(torn.iter().map(|left| self.with(&changes, Some((number, left)))));
            }
        }
        variants
    }

    /// With these changes, of which one may be replaced by what is left of it.
    fn with(&self, changes: &[&Change], torn: Option<(usize, &Change)>) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (number, change) in changes.iter().enumerate() {
            match torn {
                Some((replaced, left)) if replaced == number => left.apply(&mut bytes),
                _ => change.apply(&mut bytes),
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => {
                let end = at + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*at..end].copy_from_slice(bytes);
            }
            Self::Truncate { length } => content.resize(*length, 0),
        }
    }

    /// What may be left of a write: at each grain of a small one, at sixteen places of a large one.
    fn torn(&self, grain: usize) -> Vec<Self> {
        let Self::Write { at, bytes } = self else { return Vec::new() };
        let grain = if bytes.len() > 4096 { bytes.len() / 16 } else { grain };
        let torn = (0..bytes.len()).step_by(grain).flat_map(|cut| {
            let zeros = |count| vec![0; count];
            let first = &bytes[..cut];
            let padded = [first, &zeros(bytes.len() - cut)].concat();
            let last = [&zeros(cut)[..], &bytes[cut..]].concat();
            [first.to_vec(), padded, last]
        });
        torn.map(|bytes| Self::Write { at: *at, bytes }).collect()
    }
}

/// The names after these changes.
fn after(durable: &Names, changes: &[&NameChange]) -> Names {
    let mut names = durable.clone();
    for change in changes {
        match change {
            NameChange::Set { name, file } => drop(names.insert(name.clone(), *file)),
            NameChange::Remove { name } => drop(names.remove(name)),
            NameChange::Move { from, to, file } => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
    names
}

/// The names with every combination of what their files may have.
fn filled(names: &Names, variants: &BTreeMap<usize, Vec<Rc<[u8]>>>) -> Vec<Image> {
    // Two names of one file have the same in it.
    let files: BTreeSet<usize> = names.values().copied().collect();
    let mut all: Vec<BTreeMap<usize, &Rc<[u8]>>> = vec![BTreeMap::new()];
    for file in files {
        let with = |chosen: &BTreeMap<usize, _>, content| {
            let mut chosen = chosen.clone();
            chosen.insert(file, content);
            chosen
        };
        all = all
            .iter()
            .flat_map(|chosen| variants[&file].iter().map(move |content| with(chosen, content)))
            .collect();
    }
    let image = |chosen: &BTreeMap<usize, &Rc<[u8]>>| {
        names.iter().map(|(name, file)| (name.clone(), Rc::clone(chosen[file]))).collect()
    };
    all.iter().map(image).collect()
}

/// Every choice of some of them, in their order.
fn subsets<T>(all: &[T]) -> impl Iterator<Item = Vec<&T>> {
    assert!(all.len() <= MOST_PENDING, "{} changes without a sync", all.len());
    (0..1_usize << all.len()).map(|choice| {
        let chosen = all.iter().enumerate().filter(|(number, _)| choice & (1 << number) != 0);
        chosen.map(|(_, one)| one).collect()
    })
}

fn create(name: &str, file: usize) -> Op {
    Op::Create { name: name.to_owned(), file }
}

fn write(file: usize, text: &str) -> Op {
    Op::Write { file, at: 0, bytes: text.as_bytes().to_vec() }
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename { from: from.to_owned(), to: to.to_owned() }
}

/// What a file of that name may have; none where there is no such file.
fn contents_of(name: &str, ops: &[Op]) -> BTreeSet<Option<String>> {
    let text = |image: &Image| {
        let text = String::from_utf8(image.get(name)?.to_vec()).unwrap();
        Some(text.replace('\0', "0"))
    };
    images(ops, 2).iter().map(text).collect()
}

fn texts(all: &[Option<&str>]) -> BTreeSet<Option<String>> {
    all.iter().map(|text| text.map(str::to_owned)).collect()
}

#[test]
fn what_was_not_synced_may_be_missing_torn_or_zero() {
    let ops = [create("a", 1), Op::SyncDirectory, write(1, "wxyz")];

    let expected = [Some(""), Some("0000"), Some("wx"), Some("wx00"), Some("00yz"), Some("wxyz")];
    assert_eq!(contents_of("a", &ops), texts(&expected));
    let synced = [&ops[..], &[Op::Sync { file: 1 }]].concat();
    assert_eq!(contents_of("a", &synced), texts(&[Some("wxyz")]));
}

#[test]
fn a_file_that_was_synced_has_no_name_before_its_directory_is() {
    let ops = [create("a", 1), write(1, "wx"), Op::Sync { file: 1 }];

    assert_eq!(contents_of("a", &ops), texts(&[None, Some("wx")]));
}

#[test]
fn a_rename_without_a_sync_of_what_is_renamed_may_replace_the_good_by_nothing() {
    let good = [create("a", 1), write(1, "old!"), Op::Sync { file: 1 }, Op::SyncDirectory];
    let unsafe_change = [create("b", 2), write(2, "new!"), rename("b", "a")];
    let safe_change = [create("b", 2), write(2, "new!"), Op::Sync { file: 2 }, rename("b", "a")];

    let left = contents_of("a", &[&good[..], &unsafe_change].concat());
    assert!(left.contains(&Some(String::new())) && left.contains(&Some("ne00".to_owned())), "{left:?}");
    let left = contents_of("a", &[&good[..], &safe_change].concat());
    assert_eq!(left, texts(&[Some("old!"), Some("new!")]));
}

#[test]
fn names_change_in_any_order_and_two_names_of_a_file_have_the_same_in_it() {
    let good = [create("a", 1), write(1, "old!"), Op::Sync { file: 1 }, Op::SyncDirectory];
    let link = Op::Link { name: "a".to_owned(), to: "c".to_owned() };
    let change = [create("b", 2), write(2, "new!"), Op::Sync { file: 2 }, link, rename("b", "a")];

    let left = images(&[&good[..], &change].concat(), 2);

    let has = |name: &str, content: &str, image: &Image| {
        image.get(name).map_or("none", |bytes| std::str::from_utf8(bytes).unwrap()) == content
    };
    assert!(left.iter().any(|image| has("a", "new!", image) && has("c", "none", image)), "{left:?}");
    assert!(left.iter().any(|image| has("a", "old!", image) && has("c", "old!", image)), "{left:?}");
    assert!(left.iter().all(|image| has("c", "none", image) || has("c", "old!", image)), "{left:?}");
}
