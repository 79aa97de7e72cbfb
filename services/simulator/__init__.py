"""The mesh's deciding code in virtual time: a real batcher, a real KV-cache manager, fast engines."""
