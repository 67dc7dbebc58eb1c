import "./element";
import "./page.css";
