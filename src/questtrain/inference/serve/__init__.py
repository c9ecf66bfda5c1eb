"""A trained model behind the OpenAI API: HTTP alone, the engine runs in a process of its own."""
