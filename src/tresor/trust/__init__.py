"""The release ceremony: workload identity manifests, trust bundles, and the offline root that signs them."""
