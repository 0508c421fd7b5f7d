"""Results as static HTML and plotly figures; knows no model and no gradio."""
