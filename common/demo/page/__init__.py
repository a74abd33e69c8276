"""The page: its texts in two languages, its HTML, and its tabs. Only this folder knows of Gradio."""
