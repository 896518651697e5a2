# How the program is built for others: with a profile, where there is one. Sourced, not run, in the sources' directory.
#
# `tests/bench/run train` makes the profile. It tells
#  - the compiler what ran how often, so that what runs often is fast, and the rest small: profile-guided optimisation,
#    see https://doc.rust-lang.org/rustc/profile-guided-optimization.html
#  - the linker what runs at all, so that it lies side by side: the kernel loads 64 KiB around each page that is used.

target_directory() {
    local metadata
    metadata=$(cargo metadata --locked --no-deps --format-version 1)
    sed -E 's/.*"target_directory":"([^"]*)".*/\1/' <<<"$metadata"
}

host_triple() { rustc -vV | sed -n 's/^host: //p'; }

# Where the profile of these sources and this compiler is, or would be, below the target directory $1. Those of other
# sources or of another compiler are never used: what changed was not counted.
profile_directory() {
    local sources
    sources=$({
        rustc -vV
        find Cargo.toml Cargo.lock src -type f -exec sha256sum {} + | LC_ALL=C sort
    } | sha256sum)
    echo "$1/profile/${sources:0:16}"
}

has_profile() { [[ -n $1 && -e $1/program.profdata ]]; }

# Builds $1/HOST/release/cnblogs-proxy with the profile in $2, if there is one, and with these flags of the compiler. To
# the compiler a function is another one when cargo is given a target, so all that makes or uses a profile builds here.
build_program() {
    local target=$1 profile=$2 host flags=("${@:3}")
    host=$(host_triple)
    if has_profile "$profile"; then
        echo "building with the profile $profile"
        flags+=(-C "profile-use=$profile/program.profdata" -C llvm-args=-no-pgo-warn-mismatch)
        # Only LLD takes an order. It is the compiler's own choice on this platform, and on no other.
        if [[ -e $profile/program.order && $host == x86_64-unknown-linux-gnu ]]; then
            flags+=(-C "link-arg=-Wl,--symbol-ordering-file=$profile/program.order,--no-warn-symbol-ordering")
        fi
    else
        echo 'building without a profile'
    fi
    # With a target, what runs while building (macros, build scripts) does without those flags.
    CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo -n "${flags[*]}") \
        cargo build --locked --release --target "$host" --target-dir "$target" --bin cnblogs-proxy
}

fail() {
    echo "error: $*" >&2
    exit 1
}
