"""What stays warm while functions come and go: the KV pool in shared memory and the process zygote."""
