/*
 * How the static program looks up names: in /etc/hosts and by DNS, whatever /etc/nsswitch.conf says.
 *
 * Other sources (resolve, mymachines, myhostname, mdns4_minimal ...) are shared libraries. A static program of glibc
 * loads them together with the machine's own libc, and that works only with the very version of glibc that the program
 * was linked with: with another one it dies of a signal. These two are in glibc itself since 2.34. The same is what
 * musl does, and what a resolver of Rust's would do with 30 more crates. systemd-resolved is still asked: its
 * /etc/resolv.conf names it as the DNS server.
 */
extern int __nss_configure_lookup(const char *database, const char *sources);

__attribute__((constructor)) static void configure_lookup(void) { __nss_configure_lookup("hosts", "files dns"); }
