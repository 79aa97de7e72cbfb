"""Text to tokens and back, prompt blocks, stop strings. Pure: no grpc, no engine, no asyncio.

| module | idea |
|---|---|
| tokenizer | text and chats to ids, ids to text, from a tokenizer.json or a GGUF file |
| words, parts | what was tokenized before: the words of a text, the longer parts of a prompt |
| seams | whether a text may be tokenized part by part |
| template | renders a chat with the model's own template, so that content stays content |
| gguf, gguf_metadata | a tokenizer.json out of a GGUF file's metadata |
| detokenize, byte_table | ids to text, piece by piece, never splitting a character |
| stop | ends an answer in front of a stop string |
| blocks | hashes of the blocks that a prompt fills |
"""
