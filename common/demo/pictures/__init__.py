"""What the page shows, as generators that yield every intermediate state. Nothing here knows of a browser."""
