"""What the package ships as data: the GPT-2 BPE ranks and the embedded corpus, with their licences."""
