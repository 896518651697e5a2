// Verifies a certificate for a name: verify CA.pem LEAF.pem NAME.
package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
)

func main() {
	roots := x509.NewCertPool()
	authority, _ := os.ReadFile(os.Args[1])
	if !roots.AppendCertsFromPEM(authority) {
		os.Exit(2)
	}
	text, _ := os.ReadFile(os.Args[2])
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		os.Exit(2)
	}
	options := x509.VerifyOptions{Roots: roots, DNSName: os.Args[3]}
	options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	if _, err := leaf.Verify(options); err != nil {
		os.Exit(1)
	}
}
